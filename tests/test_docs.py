"""The documentation says what the code does."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from import_picture import picture

from llmconv import Registry
from llmconv.encodings import Grid, PerRow
from llmconv.plugins import hooks as hookspecs
from llmconv.recipe.recipe import Recipe

ROOT = Path(__file__).parents[1]


def test_every_hook_is_documented_with_its_signature() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text()
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("register_")}
    assert set(re.findall(r"^### `(\w+)\(", text, re.MULTILINE)) == set(hooks)
    for name, hook in hooks.items():
        assert f"### `{name}{str(inspect.signature(hook)).replace(chr(39), '')}`" in text


def test_readme_holds_the_example_plugin_word_for_word() -> None:
    readme = (ROOT / "README.md").read_text()
    assert (ROOT / "examples" / "scale_queries" / "llmconv_scale_queries.py").read_text() in readme


def test_every_pass_and_every_section_is_documented() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    for name in Registry.load().of_kind("pass"):
        assert f"| `{name}` |" in text
    for section in set(Recipe.model_fields) - {"name"}:
        assert re.search(rf"\| `\[*{section}(\.NAME)?\]*` \|", text)


def test_readme_names_each_command_that_ci_runs() -> None:
    blocks = re.findall(r"```sh\n# (\w+)", (ROOT / "README.md").read_text())
    assert blocks == ["demo", "tests"]


def test_the_picture_of_the_house_is_of_todays_imports() -> None:
    assert picture() in (ROOT / "docs" / "architecture.md").read_text()


def test_the_quantizer_of_the_documentation_quantizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "plugins.md").read_text()
    (tmp_path / "own_quantizer.py").write_text(re.search(r"```python\n(from dataclasses.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry.of(importlib.import_module("own_quantizer"))
    weight = torch.tensor([[1.0, -1.0, 2.0, 100.0], [0.0, 0.0, 0.0, 4.0]])
    found = registry.create("quantizer", "thrice_the_mean", {}).quantize(weight, Grid(4, PerRow()), None)
    assert found.scale.tolist() == pytest.approx([78 / 7, 3 / 7])
    assert found.ints.tolist() == [[0, 0, 0, 7], [0, 0, 0, 7]]
