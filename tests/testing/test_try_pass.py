"""Trying a pass on a small module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tiny_graphs import tiny_causal

from llmconv import PassError, RecipeError
from llmconv.graph import aten
from llmconv.passes import RewritePass
from llmconv.testing import MODULES, random_weights, tiny_module, try_pass


@dataclass(frozen=True)
class Double(RewritePass):
    """Replaces linear by twice its half, or by something wrong."""

    name: ClassVar[str] = "double"
    targets: ClassVar[tuple[Any, ...]] = (aten.linear.default,)

    factor: float = 2.0

    def replacement(self, x: Any, weight: Any, bias: Any = None) -> Any:
        return aten.linear.default(x * 0.5, weight, None if bias is None else bias * 0.5) * self.factor


def test_counts_before_and_after() -> None:
    trial = try_pass(Double(), tiny_causal())
    assert set(trial.model.graphs) == {"prompt", "token"}
    for name in trial.model.graphs:
        assert trial.before[name]["linear"] == trial.after[name]["linear"] == 3
        assert trial.after[name]["mul"] == trial.before[name]["mul"] + 6
    assert trial.report.name == "double"
    assert set(trial.report.errors) == {"prompt", "token"}
    assert max(trial.report.errors.values()) <= Double.tolerance


def test_wrong_pass_is_refused() -> None:
    with pytest.raises(PassError, match="pass 'double': graph 'prompt' differs"):
        try_pass(Double(factor=2.1), tiny_causal())


def test_options_are_a_recipes() -> None:
    assert try_pass(Double, tiny_causal(), options="factor = 2.0").made == Double(2.0)
    with pytest.raises(RecipeError, match="pass 'double': no option 'facto'; did you mean 'factor'"):
        try_pass(Double, tiny_causal(), options="facto = 2.0")


def test_a_second_run_of_what_finds_its_op_again_changes_something() -> None:
    assert try_pass(Double(), tiny_causal(), graphs={"token": (1, 4)}).again()


@pytest.mark.parametrize("name", MODULES)
def test_the_ready_modules_are_what_their_names_say(name: str) -> None:
    trial = try_pass(Double(), tiny_module(name), graphs={"token": (1, 4)})
    weights = random_weights(tiny_module(name))
    assert trial.before["token"]["sdpa"] == 2
    assert trial.before["token"]["rms_norm"] == (9 if name == "qk_norm" else 5)
    assert trial.before["token"]["cos"] == (2 if name == "two_rotaries" else 1)
    assert weights.shape("layers.0.self_attn.k_proj.weight")[0] == (56 if name == "mha" else 28)
    assert ("layers.0.mlp.up_proj.bias" in weights) == (name == "biased")
    alike = torch.equal(weights.read("lm_head.weight"), weights.read("embed_tokens.weight"))
    assert alike == (name == "tied")


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no module named 'gqb'; did you mean 'gqa'"):
        tiny_module("gqb")


def test_passes_before_it_are_not_in_its_report() -> None:
    trial = try_pass(Double(), tiny_causal(), after=[Double()], graphs={"token": (1, 4)})
    assert trial.report.name == "double"
    assert trial.after["token"]["mul"] - trial.before["token"]["mul"] == 6
    assert trial.report.nodes["token"][1] - trial.report.nodes["token"][0] == 6


def test_random_weights_are_seeded_and_scaled() -> None:
    module = tiny_causal()
    weights, same, other = random_weights(module), random_weights(module), random_weights(module, seed=1)
    assert weights.tensors.keys() == dict(module.named_parameters()).keys()
    head = weights.read("head.weight")
    assert torch.equal(head, same.read("head.weight"))
    assert not torch.equal(head, other.read("head.weight"))
    assert head.std().item() == pytest.approx(8**-0.5, rel=0.3)  # 128 samples of standard deviation 1 / sqrt(8)
