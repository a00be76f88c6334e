"""Trying a pass on a small module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tiny_graphs import tiny_causal

from llmconv import PassError
from llmconv.graph import aten
from llmconv.passes import RewritePass
from llmconv.testing import random_weights, try_pass


@dataclass(frozen=True)
class Double(RewritePass):
    """Replaces linear by twice its half, or by something wrong."""

    name: ClassVar[str] = "double"
    targets: ClassVar[tuple[Any, ...]] = (aten.linear.default,)

    factor: float = 2.0

    def replacement(self, x: Any, weight: Any) -> Any:
        return aten.linear.default(x * 0.5, weight) * self.factor


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
