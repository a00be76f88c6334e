"""Sizes found from a few layers of each kind are those of the whole model, wherever they are found so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import fx

import llmconv
from llmconv import PassError, Recipe, Registry
from llmconv.graph import Graph, Model, part_sizes
from llmconv.passes import GraphPass, PassContext
from llmconv.planning.by_kind import sizes_by_kind
from llmconv.prepare import check, lay_out
from llmconv.prepare.resolve import Checked
from llmconv_plugins import backends, chipsets, executors, lowerings, passes, quantizers, sources
from llmconv_plugins.passes.decompose import Decompose

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
GLOBAL_EVERY_THIRD = ["sliding_attention", "sliding_attention", "full_attention"] * 5
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama"},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
    "smollm3, of which some layers are not turned": {
        "model_type": "smollm3",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "gemma3, with two tables": {"model_type": "gemma3_text", "layer_types": GLOBAL_EVERY_THIRD[:14]},
    "phi, with parallel branches": {"model_type": "phi", "partial_rotary_factor": 0.5},
}
Checks = Callable[..., Checked]


@pytest.fixture
def checked(tmp_path: Path) -> Checks:
    """The tiny recipe, with more passes, over the config.json of a model of 14 layers."""

    def call(family: str = "llama", *changes: str, **config: object) -> Checked:
        (tmp_path / "config.json").write_text(json.dumps(SMALL | FAMILIES[family] | config))
        change = [f"model.checkpoint='{tmp_path}'", "passes.w4a16.lm_head_bits=8", *changes]
        values = Recipe.load(RECIPES / "tiny_llama.toml", change).to_dict()
        values["passes"] = [{"name": "rotate"}, {"name": "balance_cache"}, *values["passes"]]
        return check(Recipe.from_dict(values), Registry.load(), weights=False)

    return call


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parts", ["parts=1", "parts=4", "layers=[1, 6, 5, 2]"])
def test_sizes_are_those_of_all_layers(checked: Checks, family: str, parts: str) -> None:
    its = checked(family, "passes.split_model.parts=1", f"passes.split_model.{parts}")
    found = sizes_by_kind(its)
    assert found is not None
    model, sizes = found
    assert len(model.graphs["token"].parts) < SMALL["num_hidden_layers"]  # type: ignore[operator]
    assert sizes == part_sizes(*lay_out(its))


@dataclass(frozen=True)
class Unsaid(GraphPass):
    """A pass that says nothing of layers."""

    name: ClassVar[str] = "unsaid"

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        return False


@dataclass(frozen=True)
class Heir(Decompose):
    """A pass under one that treats layers alike, which need not do so itself."""

    name: ClassVar[str] = "heir"


@dataclass(frozen=True)
class Whole(GraphPass):
    """A pass that says it treats layers alike, and then wants all of them."""

    name: ClassVar[str] = "whole"
    by_place: ClassVar[tuple[str, ...] | None] = ()

    def run(self, model: Model, context: PassContext) -> bool:
        assert model.config is not None
        if model.config.layers < 14:
            raise PassError(f"{model.config.layers} layers are not enough")
        return False

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        return False


class Plugin:
    @llmconv.hookimpl
    def register_passes(self) -> list[type[GraphPass]]:
        return [Unsaid, Heir, Whole]


REGISTRY = Registry.of(passes, quantizers, sources, backends, lowerings, chipsets, executors, Plugin())


def _with(its: Checked, name: str) -> Checked:
    values: dict[str, Any] = its.recipe.to_dict()
    values["passes"].insert(-1, {"name": name})
    return check(Recipe.from_dict(values), REGISTRY, weights=False)


@pytest.mark.parametrize("name", ["unsaid", "heir"])
def test_a_pass_that_says_nothing_of_layers_gets_all(checked: Checks, name: str) -> None:
    assert sizes_by_kind(checked()) is not None
    assert sizes_by_kind(_with(checked(), name)) is None


def test_lines_that_name_layers_get_all(checked: Checks) -> None:
    assert sizes_by_kind(checked("llama", 'passes.w4a16.weights={"layers.3.*" = { bits = 8 }}')) is None


def test_few_layers_are_laid_out(checked: Checks) -> None:
    assert sizes_by_kind(checked(num_hidden_layers=7)) is None
    assert sizes_by_kind(checked(num_hidden_layers=8)) is not None


def test_what_few_layers_cannot_show_all_do(checked: Checks) -> None:
    its = _with(checked(), "whole")
    with pytest.raises(PassError, match="4 layers are not enough"):
        sizes_by_kind(its)
    assert llmconv.plan(its.recipe, registry=REGISTRY).parts == part_sizes(*lay_out(its))
