"""The documentation says what the code does."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import typer.testing
from import_picture import picture

import llmconv.testing
import llmconv.testing.fixtures
from llmconv import Bundle, Registry
from llmconv.cli import extensions
from llmconv.cli.main import app
from llmconv.encodings import Grid, PerRow
from llmconv.plugins import hooks as hookspecs
from llmconv.plugins.api import API_VERSION
from llmconv.plugins.listing import listed
from llmconv.recipe.recipe import Recipe
from llmconv.work import Outcome, Task

ROOT = Path(__file__).parents[1]


def test_every_hook_is_documented_with_its_signature() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text()
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("register_")}
    assert set(re.findall(r"^### `(\w+)\(", text, re.MULTILINE)) == set(hooks)
    for name, hook in hooks.items():
        assert f"### `{name}{str(inspect.signature(hook)).replace(chr(39), '')}`" in text


SECTIONS = re.split(r"^### `", (ROOT / "docs" / "plugins.md").read_text(), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("section", SECTIONS, ids=[section.partition("(")[0] for section in SECTIONS])
def test_every_hook_has_an_example_that_is_executed(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of examples/, whose own test runs with all others; or the section's code, which is one more plugin here."""
    hook = section.partition("(")[0]
    examples = [ROOT / "examples" / name for name in re.findall(r"`examples/(\w+)`", section)]
    assert all(
        f"def {hook}(" in (folder / f"llmconv_{folder.name}.py").read_text() for folder in examples if folder.is_dir()
    )
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    if code is None:
        assert [folder for folder in examples if (folder / f"test_{folder.name}.py").is_file()]
        return
    (tmp_path / f"documented_{hook}.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry.of(importlib.import_module(f"documented_{hook}"))
    (listed_one,) = listed(registry)
    assert (listed_one.state, len(listed_one.brings)) == ("loaded", 1)


def test_the_documented_api_version_is_the_codes() -> None:
    assert f"The plugin API has a version, {API_VERSION}," in (ROOT / "docs" / "plugins.md").read_text()


def test_every_trial_and_fixture_is_documented() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text()
    names = [name for name in llmconv.testing.__all__ if name.startswith(("try_", "tiny_"))]
    fixtures = [name for name in vars(llmconv.testing.fixtures) if name.startswith("llmconv_")]
    assert len(names) + len(fixtures) == 13
    for name in names + fixtures:
        assert f"`{name}" in text


def test_readme_holds_the_example_plugin_word_for_word() -> None:
    readme = (ROOT / "README.md").read_text()
    assert (ROOT / "examples" / "scale_queries" / "llmconv_scale_queries.py").read_text() in readme


def test_every_pass_and_every_section_is_documented() -> None:
    """By name; keys and options, with their meaning, are the schema's, of which the site has a page."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    for name in Registry.load().of_kind("pass"):
        assert f"`{name}`" in text
    for section in Recipe.model_fields:
        assert re.search(rf"`\[*{section}(\.NAME)?\]*`", text)


def test_readme_names_each_command_that_ci_runs() -> None:
    blocks = re.findall(r"```sh\n# (\w+)", (ROOT / "README.md").read_text())
    assert blocks == ["demo", "tests"]


def test_the_picture_of_the_house_is_of_todays_imports() -> None:
    assert picture() in (ROOT / "docs" / "architecture.md").read_text()


def test_the_executor_of_the_documentation_does_tasks_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "plugins.md").read_text()
    (tmp_path / "own_executor.py").write_text(re.search(r"```python\n(import threading.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry.of(importlib.import_module("own_executor"))
    said: list[list[str]] = []
    with registry.create("executor", "in_turn", {}).open(tmp_path, None) as workers:
        found = workers.run([Task(name, 1, lambda _folder, _stop: Outcome(len(said))) for name in "ab"], said.append)
    assert [outcome.value for outcome in found] == [1, 2]
    assert said == [["a"], ["b"]]


def test_the_command_of_the_documentation_is_one(
    small_onnx: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "plugins.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    (tmp_path / "own_command.py").write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    monkeypatch.syspath_prepend(tmp_path)
    named = tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    (entry,) = named["project"]["entry-points"][extensions.GROUP].items()
    found = EntryPoint(entry[0], entry[1].replace("your_module", "own_command"), extensions.GROUP)
    monkeypatch.setattr(extensions, "entry_points", lambda group: [found])
    result = typer.testing.CliRunner().invoke(app, [entry[0], str(small_onnx.folder)], catch_exceptions=False)
    assert result.exit_code == 0
    assert re.search(r"^ +[\d,]+ onnx/part_1_of_2\.data$", result.stdout, re.MULTILINE)


def test_the_quantizer_of_the_documentation_quantizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "plugins.md").read_text()
    (tmp_path / "own_quantizer.py").write_text(re.search(r"```python\n(from dataclasses.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry.of(importlib.import_module("own_quantizer"))
    weight = torch.tensor([[1.0, -1.0, 2.0, 100.0], [0.0, 0.0, 0.0, 4.0]])
    found = registry.create("quantizer", "thrice_the_mean", {}).quantize(weight, Grid(4, PerRow()), None)
    assert found.scale.tolist() == pytest.approx([78 / 7, 3 / 7])
    assert found.ints.tolist() == [[0, 0, 0, 7], [0, 0, 0, 7]]
