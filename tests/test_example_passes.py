"""The example passes that make weights, tried on a tiny Llama as their authors would."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmconv.graph import name_of
from llmconv.passes import Pass
from llmconv.sources import Architecture, Rope
from llmconv.testing import PassTrial, random_weights, try_pass
from llmconv.weights import Derived
from llmconv_plugins.passes import Decompose, KVCacheIO, LinearToConv, SplitHeads
from llmconv_plugins.sources.decoder import DecoderModule

EXAMPLES = Path(__file__).parents[1] / "examples"
HIDDEN, INNER, LAYERS = 16, 20, 2
SIZES = Architecture(
    vocabulary=24,
    hidden=HIDDEN,
    intermediate=INNER,
    layers=LAYERS,
    heads=2,
    kv_heads=1,
    head_dim=6,
    norm_eps=1e-5,
    positions=4096,
    ropes=(Rope.plain(10000.0, 6),),
)


def llama() -> nn.Module:
    with torch.device("meta"):
        return DecoderModule(SIZES)


def example(name: str) -> Pass:
    spec = importlib.util.spec_from_file_location(f"llmconv_{name}", EXAMPLES / name / f"llmconv_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (found,) = module.register_passes()
    made: Pass = found()
    return made


def weight_names(trial: PassTrial) -> set[str]:
    parts = [part for graph in trial.model.graphs.values() for part in graph.parts]
    return {name_of(node) for part in parts for node in part.graph.find_nodes(op="get_attr")}


def test_gate_and_up_become_one_projection() -> None:
    trial = try_pass(example("fuse_gate_up"), llama())
    assert trial.report.changed
    for name in trial.model.graphs:
        assert trial.before[name]["linear"] - trial.after[name]["linear"] == LAYERS
    fused = "layers.1.mlp.gate_up_proj.weight"
    assert fused in weight_names(trial)
    assert not [name for name in weight_names(trial) if name.endswith((".gate_proj.weight", ".up_proj.weight"))]
    before = random_weights(llama())
    both = [before.read(fused.replace("gate_up", half)) for half in ("gate", "up")]
    assert torch.equal(trial.model.weights.read(fused), torch.cat(both))
    assert torch.equal(
        trial.model.weights.read(fused, slice(INNER - 1, INNER + 1)), torch.cat(both)[INNER - 1 : INNER + 1]
    )


def test_norms_are_folded_into_the_linears_behind_them() -> None:
    trial = try_pass(example("fold_norm"), llama())
    assert trial.report.changed
    assert trial.after == trial.before
    weights, before = trial.model.weights, random_weights(llama())
    for norm, linear in (
        ("layers.0.input_layernorm.weight", "layers.0.self_attn.v_proj.weight"),
        ("layers.1.post_attention_layernorm.weight", "layers.1.mlp.up_proj.weight"),
        ("norm.weight", "lm_head.weight"),
    ):
        assert torch.equal(weights.read(norm), torch.ones(HIDDEN))
        assert torch.equal(weights.read(linear), before.read(linear) * before.read(norm))
    unchanged = "layers.0.mlp.down_proj.weight"
    assert torch.equal(weights.read(unchanged), before.read(unchanged))


@pytest.mark.parametrize("names", [("fold_norm", "fuse_gate_up"), ("fuse_gate_up", "fold_norm")], ids=" then ".join)
def test_one_may_build_on_the_other_and_built_in_passes_on_both(names: tuple[str, str]) -> None:
    passes = [KVCacheIO(), *map(example, names), SplitHeads(), Decompose()]
    trial = try_pass(LinearToConv(), llama(), after=passes)
    assert max(trial.report.errors.values()) < 1e-4
    assert isinstance(trial.model.weights, Derived)
    fused = trial.model.weights.read("layers.0.mlp.gate_up_proj.weight")
    before = random_weights(llama())
    gain = before.read("layers.0.post_attention_layernorm.weight")
    both = [before.read(f"layers.0.mlp.{half}_proj.weight") for half in ("gate", "up")]
    torch.testing.assert_close(fused, torch.cat(both) * gain)
