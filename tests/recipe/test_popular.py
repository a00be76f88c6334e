"""The recipes of popular models: as the chooser makes them, and each fits its phone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from popular_models import POPULAR, RECIPES, finished, wish, write_checkpoint

import llmconv
from llmconv import Recipe, Registry
from llmconv.choosing.choose import drafts
from llmconv.choosing.parts import parted
from llmconv.graph import part_sizes
from llmconv.planning.by_kind import sizes_by_kind
from llmconv.prepare import check, lay_out
from llmconv.recipe import shipped

SETTING = "passes.split_model.parts"


def parts_of(name: str) -> int:
    """As the recipe says."""
    entries = Recipe.load(RECIPES / f"{name}.toml").passes
    return next(int(p.options["parts"]) for p in entries if p.name == "split_model")


@pytest.mark.parametrize("name", POPULAR)
def test_a_recipe_is_what_the_chooser_drafts(name: str, tmp_path: Path) -> None:
    """In so many parts as it says, which the next test plans; `popular_models.py` has searched for the number."""
    popular, registry = POPULAR[name], Registry.load()
    draft = next(drafts(wish(name, popular, write_checkpoint(popular, tmp_path)), registry))
    chipset = registry.chipset(popular.phone)
    made = parted(draft, SETTING, parts_of(name), chipset.name)
    assert (RECIPES / f"{name}.toml").read_text() == finished(made, popular)
    assert name in shipped.names()
    Recipe.load(RECIPES / f"{name}.toml").check(Registry.load())


@pytest.mark.parametrize("name", POPULAR)
def test_sizes_are_those_of_the_published_model(name: str, tmp_path: Path) -> None:
    """Parameters as the publisher counts them, off by at most the 2 % that rounding in the name allows."""
    (tmp_path / "config.json").write_text(json.dumps(POPULAR[name].config))
    module = Registry.load().source("decoder", {"checkpoint": tmp_path}).module()
    tied = POPULAR[name].config.get("tie_word_embeddings", POPULAR[name].config["model_type"].startswith("gemma"))
    counted = sum(p.numel() for n, p in module.named_parameters() if not (tied and n == "lm_head.weight"))
    assert counted == pytest.approx(POPULAR[name].parameters, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", POPULAR)
def test_the_plan_holds_for_the_phone(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(POPULAR[name].config))
    made = llmconv.plan(Recipe.load(RECIPES / f"{name}.toml", [f"model.checkpoint='{tmp_path}'"]))
    assert [limit.message(made.chipset.name) for limit in made.limits if limit.verdict != "ok"] == []
    assert len(made.parts) == parts_of(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3_2_1b", "qwen2_5_1_5b", "gemma3_1b"])
def test_a_plan_from_a_few_layers_is_that_of_all(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(POPULAR[name].config))
    its = check(
        Recipe.load(RECIPES / f"{name}.toml", [f"model.checkpoint='{tmp_path}'"]), Registry.load(), weights=False
    )
    found = sizes_by_kind(its)
    assert found is not None
    assert found[1] == part_sizes(*lay_out(its))
