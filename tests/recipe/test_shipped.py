"""The recipes that come with llmconv, and copying them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmconv import Recipe, RecipeError
from llmconv.recipe import shipped


def test_every_shipped_recipe_loads() -> None:
    assert "tiny_llama" in shipped.names()
    for name in shipped.names():
        assert Recipe.load(shipped.folder() / f"{name}.toml").name == name


def test_copy_stands_by_itself(tmp_path: Path) -> None:
    copies = shipped.copy("tiny_llama", tmp_path / "new")
    assert copies == [tmp_path / "new" / "tiny_llama.toml", tmp_path / "new" / "tiny_llama"]
    recipe = Recipe.load(copies[0])
    assert recipe.calibration is not None
    for path in (recipe.model.checkpoint / "model.safetensors", recipe.calibration.text, recipe.verify.text):
        assert path is not None
        assert path.is_relative_to(tmp_path)
        assert path.is_file()


def test_copy_brings_a_text_of_another_recipe_and_nothing_else_of_it(tmp_path: Path) -> None:
    copies = shipped.copy("llama2_7b_chat", tmp_path)
    assert copies == [tmp_path / "llama2_7b_chat.toml", tmp_path / "calibration" / "mixed.txt"]
    recipe = Recipe.load(copies[0])
    assert recipe.calibration is not None
    assert recipe.calibration.text == copies[1]
    assert str(recipe.model.checkpoint) == "hub:meta-llama/Llama-2-7b-chat-hf"


@pytest.mark.parametrize(
    ("name", "prompt", "split"),
    [
        ("llama2_7b_chat", (1024, 1024), {"layers": [8, 8, 8, 8]}),
        ("llama2_7b_chat_ar128", (128, 4096), {"parts": 4}),
    ],
)
def test_recipes_of_llama_2(name: str, prompt: tuple[int, int], split: dict[str, object]) -> None:
    recipe = Recipe.load(shipped.folder() / f"{name}.toml")
    graphs = {graph: (g.ar, g.context) for graph, g in recipe.graphs.items()}
    assert graphs == {"prompt": prompt, "token": (1, prompt[1])}
    assert [p.name for p in recipe.passes][-2:] == ["split_model", "w4a16"]
    assert recipe.passes[-2].options == split


def test_copy_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny_llama").mkdir()
    with pytest.raises(RecipeError, match="exists"):
        shipped.copy("tiny_llama", tmp_path)
    assert not (tmp_path / "tiny_llama.toml").exists()


def test_unknown_recipe_comes_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe named 'tinyllama'; did you mean 'tiny_llama'"):
        shipped.copy("tinyllama", tmp_path)
    assert not list(tmp_path.iterdir())
