"""Checkpoints inside installed packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmconv import Recipe, RecipeError
from llmconv.recipe import shipped
from llmconv.recipe.located import elsewhere, located


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert located(tmp_path) == tmp_path
    assert not elsewhere(tmp_path)


def test_a_file_of_an_installed_package() -> None:
    found = located(Path("package:pluggy/pluggy/__init__.py"))
    assert found.name == "__init__.py"
    assert found.is_file()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("package:no-such-thing/x.gguf", "package 'no-such-thing' is not installed; pip install no-such-thing"),
        ("package:pluggy/pluggy/x.gguf", r"package 'pluggy' is installed, but has no pluggy/x\.gguf"),
        ("package:pluggy", "write 'package:pluggy' as package:DISTRIBUTION/PATH/OF/THE/FILE"),
        ("package:pluggy/../../x", "write 'package:pluggy/../../x' as package:DISTRIBUTION"),
    ],
)
def test_what_is_wrong_is_said(written: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"model.checkpoint: {message}"):
        located(Path(written))


def test_a_recipe_keeps_what_was_written_and_expands_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = shipped.folder() / "tiny_llama.toml"
    for written, expected in (
        ("package:pluggy/pluggy", "package:pluggy/pluggy"),
        ("~/model.gguf", str(tmp_path / "model.gguf")),
    ):
        recipe = Recipe.load(file, [f"model.checkpoint={written}"])
        assert str(recipe.model.checkpoint) == expected
        assert Recipe.from_dict(recipe.to_dict()).model == recipe.model
