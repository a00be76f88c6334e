"""The recipes that come with llmconv, and copying them."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmconv.recipe.shipped
from llmconv import Recipe, RecipeError, Registry, hookimpl
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


class Brings:
    """A plugin of a folder of recipes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @hookimpl
    def register_recipes(self) -> list[Path]:
        return [self._folder]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Of one plugin, whose recipe `mine` reads a text beside it; it is what is installed."""
    folder = tmp_path / "installed"
    shipped.copy("tiny_llama", folder)
    (folder / "tiny_llama.toml").rename(folder / "mine.toml")
    (folder / "mine").mkdir()
    found = Registry()
    found.add("my-recipes 1.0", Brings(folder))
    monkeypatch.setattr(llmconv.recipe.shipped.Registry, "load", lambda: found)
    return found


def test_a_recipe_of_a_plugin_is_found_by_name_with_paths_of_its_own_folder(registry: Registry, tmp_path: Path) -> None:
    recipe = Recipe.load("mine", ["backend.name=onnx"])
    assert (recipe.name, recipe.backend.name) == ("mine", "onnx")
    assert recipe.model.checkpoint == tmp_path / "installed" / "tiny_llama"
    assert Recipe.load("tiny_llama").model.checkpoint == shipped.folder() / "tiny_llama"
    by = {file.stem: distribution for distribution, file in shipped.found(registry)}
    assert (by["mine"], by["tiny_llama"]) == ("my-recipes 1.0", "llmconv")
    with pytest.raises(RecipeError, match="no recipe named 'mien'; did you mean 'mine'"):
        Recipe.load("mien")


def test_a_copy_of_a_plugins_recipe_brings_its_data(registry: Registry, tmp_path: Path) -> None:
    copies = shipped.copy("mine", tmp_path / "here")
    assert {file.relative_to(tmp_path / "here").as_posix() for file in copies} == {
        "mine.toml",
        "mine",
        "tiny_llama/calibration.txt",
        "tiny_llama/heldout.txt",
    }


def test_two_recipes_of_one_name_are_an_error_naming_both(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "installed" / "tiny_llama.toml"
    (tmp_path / "installed" / "mine.toml").rename(file)
    with pytest.raises(RecipeError, match=rf"'tiny_llama' comes from both llmconv and my-recipes 1\.0; .* {file}"):
        Recipe.load("tiny_llama")
    assert Recipe.load(file).name == "tiny_llama"
