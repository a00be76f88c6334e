"""A matrix's conversions: which there are, what each is named, and what is wrong with one in a line."""

from __future__ import annotations

import tomllib
from math import prod
from pathlib import Path

import jsonschema
import pytest

from llmconv import RecipeError
from llmconv.batch.matrix import Matrix, matrix_schema

RECIPE = """
[model]
checkpoint = "own"

[target]
name = "Galaxy S23 Ultra"

[graphs.prompt]
ar = {ar}
context = 128

[graphs.token]
ar = 1
context = 128

[backend]
name = "onnx"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, ar in (("first", 32), ("whole", 128)):
        (tmp_path / f"{name}.toml").write_text(RECIPE.format(ar=ar))
    return tmp_path


def matrix(folder: Path, text: str) -> Matrix:
    (folder / "matrix.toml").write_text(text)
    return Matrix.load(folder / "matrix.toml")


def test_every_recipe_with_every_checkpoint_target_and_context(folder: Path) -> None:
    found = matrix(
        folder,
        'recipes = ["first.toml", "whole.toml"]\ntargets = ["Galaxy S23 Ultra", "Galaxy S25"]\ncontexts = [64, 256]\n'
        '[checkpoints]\nbase = "models/base"\nTuned-2 = "hub:org/tuned"\n',
    ).members(folder / "out")
    assert len(found) == len({member.name for member in found}) == 16
    member = found[-1]
    assert member.name == "whole-tuned_2-galaxy_s25-256"
    assert member.folder == folder / "out" / member.name
    assert member.axes == {"recipe": "whole", "checkpoint": "Tuned-2", "target": "Galaxy S25", "context": "256"}
    assert str(member.recipe.model.checkpoint) == "hub:org/tuned"
    assert member.recipe.target.name == "Galaxy S25"
    assert found[0].recipe.model.checkpoint == folder / "models" / "base"


def test_a_graph_without_past_goes_on_reading_all_at_once(folder: Path) -> None:
    found = matrix(folder, 'recipes = ["first.toml", "whole.toml"]\ncontexts = [64]').members(folder)
    shapes = [{name: (g.ar, g.context) for name, g in member.recipe.graphs.items()} for member in found]
    assert shapes == [{"prompt": (32, 64), "token": (1, 64)}, {"prompt": (64, 64), "token": (1, 64)}]


def test_lists_of_contexts_become_the_one(folder: Path) -> None:
    tables, lists = (
        RECIPE.format(ar=32).partition("[graphs.prompt]"),
        "[graphs]\nar = [1, 32]\ncontext = [128, 256]\n\n",
    )
    (folder / "lists.toml").write_text(tables[0] + lists + tables[2][tables[2].index("[backend]") :])
    (member,) = matrix(folder, 'recipes = ["lists.toml"]\ncontexts = [64]').members(folder)
    assert [(g.ar, g.context) for g in member.recipe.graphs.values()] == [(32, 64), (1, 64)]


def test_where_a_key_is_missing_the_recipe_says_it(folder: Path) -> None:
    (member,) = matrix(folder, 'recipes = ["first.toml"]').members(folder / "out", ["calibration.text=held.txt"])
    assert (member.name, member.axes) == ("first", {"recipe": "first"})
    assert member.recipe.model.checkpoint == folder / "own"
    assert member.recipe.calibration is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipes = [", r"matrix.toml: not TOML"),
        ('recipes = ["first.toml"]\ntarget = ["Galaxy S25"]', r"unknown key 'target'; did you mean 'targets'"),
        ("recipes = []", r"matrix.toml: recipes: .* at least 1 item"),
        ('recipes = "first.toml"', r"matrix.toml: recipes: .* valid array, not 'first.toml'"),
        ('recipes = ["first.toml"]\ncontexts = ["64"]', r"matrix.toml: contexts.0: .* integer, not '64'"),
        ("recipes = []", r"matrix.toml: recipes: List should have at least 1 item after validation, not 0$"),
        ('recipes = ["first.toml"]\ncontexts = [0]', r"matrix.toml: contexts.0: .* greater than or equal to 1, not 0"),
        ('recipes = ["first.toml"]\n[checkpoints]\n"" = "x"', r"matrix.toml: checkpoints"),
        ('recipes = ["${NO_SUCH_VARIABLE}"]', r"matrix.toml: recipes\[0\]: environment variable NO_SUCH_VARIABLE"),
        ('recipes = ["none.toml"]', r"none.toml: no such recipe"),
        ('recipes = ["first.toml"]\ncontexts = [16]', r"context = 16 is below ar = 32"),
        ('recipes = ["first.toml", "./first.toml"]', r"two conversions would be named 'first'"),
        ('recipes = ["first.toml"]\ntargets = ["Galaxy S25", "galaxy s25"]', r"two conversions would be named"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        matrix(folder, text).members(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_the_schema_and_the_documentation_know_every_key() -> None:
    found = matrix_schema()
    text = (Path(__file__).parents[2] / "docs" / "batch.md").read_text()
    example = tomllib.loads(text.partition("```toml")[2].partition("```")[0])
    jsonschema.validate(example, found)
    assert set(example) == set(Matrix.model_fields)
    assert all(f"| `{key}` |" in text for key in Matrix.model_fields)
    with pytest.raises(jsonschema.ValidationError, match="less than the minimum"):
        jsonschema.validate({**example, "contexts": [0]}, found)
    counts = [len(example[key]) for key in ("recipes", "checkpoints", "targets", "contexts")]
    assert f"{' × '.join(map(str, counts))} = {prod(counts)} conversions" in text


def test_no_matrix(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.toml: no such matrix"):
        Matrix.load(tmp_path / "none.toml")
