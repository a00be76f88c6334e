"""Faults that the proof is there for, planted one at a time in a small model and in a real one: each is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from llmconv import Bundle, Registry
from llmconv.decoding import decoder
from llmconv.encodings import Encodings
from llmconv.evaluation.subject import Subject
from llmconv.graph import Model
from llmconv.passes.manager import PassManager
from llmconv.prepare.trace import make_verifier, trace_graphs
from llmconv.proof.in_files import encodings_hold
from llmconv.proof.on_runtimes import lowering_holds
from llmconv.sources import Rope
from llmconv.weights import WeightStore

BOTH = [pytest.param(name, marks=pytest.mark.slow) for name in ("small_bundle", "smollm2_bundle")]


@pytest.fixture(params=BOTH)
def subject(request: pytest.FixtureRequest) -> Subject:
    bundle: Bundle = request.getfixturevalue(request.param)
    return Subject(bundle, Registry.load(), lambda _stage, _item: None)


@dataclass
class Changed:
    """Another store's weights, one of them changed."""

    store: WeightStore
    name: str
    change: Callable[[torch.Tensor], torch.Tensor]
    seen: list[str] = field(default_factory=list)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        if name != self.name:
            return self.store.read(name, rows)  # of a large table few
        self.seen.append(name)
        weight = self.change(self.store.read(name))
        return weight if rows is None else weight[rows]

    def sha256(self, name: str) -> str | None:
        return None


def heads_swapped(weight: torch.Tensor, size: int) -> torch.Tensor:
    swapped = weight.clone()
    swapped[:size], swapped[size : 2 * size] = weight[size : 2 * size], weight[:size]
    return swapped


def faulty_weights(model: Model, fault: str) -> Changed:
    assert model.config is not None
    if fault == "two heads swapped":
        size = model.config.head_dim
        return Changed(model.weights, "layers.1.self_attn.q_proj.weight", lambda w: heads_swapped(w, size))
    return Changed(model.weights, "layers.1.self_attn.o_proj.weight", lambda w: w.T.contiguous())


def prepared(subject: Subject) -> tuple[Model, Any, float]:
    """The graphs after the structural passes over the checkpoint, what they are held against, and by how much."""
    checked = subject.checkpoint
    assert checked is not None
    model = trace_graphs(checked, subject.weights)
    del model.graphs["token"]  # one graph is enough here
    verifier = make_verifier(checked, model)
    reports = PassManager(checked.passes).run(model)
    return model, verifier, reports[-1].bound


def test_step_2_catches_what_passes_could_do(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    model, verifier, bound = prepared(subject)
    graph = model.graphs["prompt"]
    assert verifier.error(graph, model.weights) < bound
    for fault in ("two heads swapped", "transposed weight"):
        weights = faulty_weights(model, fault)
        assert verifier.error(graph, weights) > 10 * bound, fault
        assert weights.seen
    assert model.config is not None
    plain, rope = graph.rope, model.config.ropes[0]
    angles = torch.arange(graph.context)[:, None] * torch.tensor(Rope.plain(rope.theta * 1.2, rope.width).frequencies)
    graph.rope = {"rope_cos": angles.cos(), "rope_sin": angles.sin()}
    assert verifier.error(graph, model.weights) > 10 * bound, "a wrong RoPE base"
    graph.rope = plain
    monkeypatch.setattr(decoder, "MASKED", 0.0)
    assert verifier.error(graph, model.weights) > 10 * bound, "a missing mask"


def test_step_3_catches_what_lowering_could_do(subject: Subject) -> None:
    model = subject.quantized
    del model.graphs["token"]
    for fault in ("two heads swapped", "transposed weight"):
        weights = faulty_weights(model, fault)
        subject.quantized = replace(model, weights=weights)
        *_, check, _beyond = lowering_holds(subject, {})
        assert weights.seen
        assert check.passed is False, f"{fault}: {check.measured}"


def test_step_3_catches_an_encoding_that_is_off_by_2_percent(subject: Subject) -> None:
    assert all(check.passed for check in encodings_hold(subject))
    model = subject.quantized
    assert model.encodings is not None
    name = "layers.1.self_attn.q_proj.h0"
    values = model.encodings.values
    off = {**values, name: replace(values[name], scale=values[name].scale * 1.02)}
    subject.quantized = replace(model, encodings=Encodings(off, model.encodings.weights))
    for check in encodings_hold(subject):
        assert check.passed is False
        assert f"not of '{name}'" in check.measured
