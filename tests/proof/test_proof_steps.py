"""The proof's steps on a small module: what each measures, and that each can fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_graphs import VOCABULARY, tiny_causal

from llmconv.bundle.check import Check
from llmconv.decoding import Decoder
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.encodings import Encoding, Encodings, Noise
from llmconv.evaluation.agreement import Comparison
from llmconv.graph import Model, trace
from llmconv.passes import PassContext, PassReport
from llmconv.proof import in_float, on_others, on_runtimes, on_text
from llmconv.proof.on_others import OtherRuntimes
from llmconv.testing import random_weights
from llmconv.weights import DictStore

AR = 8
WINDOWS = [[1, 2, 3, 4, 5, 6, 7, 8], [1, 9, 10, 11, 12, 13, 14, 15]]


class Shifted(TorchRunner):
    """A runtime that is off by noise of a given share of the logits."""

    share = 0.0

    def run(self, inputs: Mapping[str, Any]) -> Any:
        outputs = super().run(inputs)
        noise = np.random.default_rng(0).standard_normal(outputs["logits"].shape).astype(np.float32)
        return {**outputs, "logits": outputs["logits"] + self.share * outputs["logits"].std() * noise}


@dataclass
class Stand:
    """A subject without a bundle: one graph, runtimes that are off by a share of the logits each."""

    off: Mapping[str, float]
    float_weights: Any = None
    rounding: dict[str, Comparison] = field(default_factory=dict)
    elements: int = 1000
    unmeasured: str | None = None

    def __post_init__(self) -> None:
        module = tiny_causal()
        self.weights = random_weights(module)
        encodings = Encodings({"blocks.0.out": Encoding.from_range(-4.0, 4.0, 16)})
        self.quantized = Model({"prompt": trace(module, AR, AR, "prompt")}, self.weights, None, encodings)
        self.windows, self.gone = WINDOWS, "not run: the checkpoint is gone"
        self.backend = SimpleNamespace(runtimes=list(self.off))
        self.bundle, self.context = SimpleNamespace(graphs=self.quantized.graphs), PassContext()
        self.bundle.simulated = lambda: [self.bundle]
        source = SimpleNamespace(module=tiny_causal, reference=lambda: "no implementation")
        recipe = SimpleNamespace(graphs={"prompt": SimpleNamespace(ar=AR, context=AR)})
        config = SimpleNamespace(bos=1, vocabulary=VOCABULARY)
        self.checkpoint: Any = SimpleNamespace(source=source, recipe=recipe, config=config, passes=[], calibration=None)

    def progress(self, _stage: str, _item: str) -> None:
        """Say nothing."""

    def decoder(self, runner: Any) -> Decoder:
        return Decoder([runner], None)

    def runtime(self, name: str) -> Any:
        return SimpleNamespace(lacks=lambda _bundle: "parts" if name == "lacking" else None)

    @contextmanager
    def open(self, runtime: str, graph: str, bundle: Any = None) -> Iterator[list[Any]]:
        assert bundle in (None, self.bundle)
        runner = Shifted(self.quantized.graphs[graph], self.weights, self.quantized.encodings)
        runner.share = self.off[runtime]
        yield [runner]


def stand(**off: float) -> Any:
    return Stand(off or {"first": 0.0})


@pytest.mark.parametrize(("share", "passed"), [(0.0, True), (1e-3, True), (1e-2, False), (1.0, False)])
def test_lowering_is_measured_against_the_graph(share: float, passed: bool) -> None:
    precision: dict[str, Any] = {}
    cost, check, beyond = on_runtimes.lowering_holds(stand(first=share), precision)
    assert cost.passed is None
    assert (check.step, check.name, check.passed) == (3, "prompt on first against the graph, logits", passed)
    if share:  # noise of a share of the logits' deviation, whose mean square is a little above
        assert float(check.measured.removesuffix(" dB")) == pytest.approx(-20 * np.log10(share), abs=2)
    assert list(precision["activations"]) == ["blocks.0.out"]
    assert precision["activations"]["blocks.0.out"] > 60
    assert (beyond.measured, beyond.passed, precision["clipped"]) == ("none of 1", None, {})


def test_runtimes_are_compared_with_the_first() -> None:
    precision: dict[str, Any] = {"runtimes": []}
    subject = stand(first=0.0, same=0.0, other=0.5, lacking=0.0)
    with OtherRuntimes(subject, precision) as others:
        with subject.open("first", "prompt") as (runner,):
            others.record("prompt", runner)
        checks = list(others.checks())
    held = {c.name: c.passed for c in checks}
    assert held["prompt on same against first, logits"] is True
    assert held["prompt on other against first, logits"] is False
    assert held["lacking against first"] is None
    assert [(r["first"], r["second"]) for r in precision["runtimes"]] == [("first", "same"), ("first", "other")]
    same, other = (r["parted"] for r in precision["runtimes"])
    assert same == []
    assert other  # each token that differs, with the two logits that the first found
    assert all(first > second for first, second in other)


def test_runs_that_are_shared_out_are_compared_as_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def found(at_once: int) -> tuple[list[str], Any]:
        precision: dict[str, Any] = {"runtimes": []}
        subject = stand(first=0.0, other=0.1)
        monkeypatch.setattr(OtherRuntimes, "_at_once", at_once)
        opening = subject.open
        subject.open = lambda *asked: opened.append(asked[0]) or opening(*asked)
        with OtherRuntimes(subject, precision) as others, subject.open("first", "prompt") as (runner,):
            others.record("prompt", runner)
            checks = list(others.checks())
        return [check.measured for check in checks], precision["runtimes"]

    monkeypatch.setattr(on_others, "SHIFT", 1)
    together = found(1)
    assert opened.count("other") == 1
    assert found(2) == together
    assert opened.count("other") == 1 + len(WINDOWS)
    assert "of 16" in together[0][-1]


def test_an_error_in_another_step_ends_what_runs_beside_it() -> None:
    subject, begun, closed = stand(first=0.0, slow=0.0), threading.Event(), threading.Event()
    opened = subject.open

    @contextmanager
    def open_slowly(runtime: str, graph: str, bundle: Any = None) -> Iterator[list[Any]]:
        with opened(runtime, graph, bundle) as (runner,):
            if runtime == "slow":  # as a simulator, which is killed where what holds it is closed
                runner.run = lambda _inputs: (begun.set(), closed.wait())
            try:
                yield [runner]
            finally:
                closed.set()

    def interrupted() -> None:
        with OtherRuntimes(subject, {"runtimes": []}) as others:
            others.record("prompt", Shifted(subject.quantized.graphs["prompt"], subject.weights))
            begun.wait()
            raise KeyboardInterrupt

    subject.open = open_slowly
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert closed.is_set()


@pytest.mark.parametrize(
    ("found", "ar", "held"),
    [
        (Comparison(positions=100, same_token=98), 32, True),
        (Comparison(positions=100, same_token=97), 32, False),
        (Comparison(positions=32, same_token=31, tied=[(9.0, 8.9)]), 1, True),
        (Comparison(positions=32, same_token=31), 1, False),
        (Comparison(positions=32, same_token=31, apart=[(9.0, 8.7)]), 1, True),  # as far as roundings move two logits
        (Comparison(positions=32, same_token=31, apart=[(9.0, 8.5)]), 1, False),
        (Comparison(positions=100, same_token=90, apart=[(9.0, 8.7)] * 10), 32, True),
    ],
)
def test_greedy_tokens_must_agree(found: Comparison, ar: int, held: bool) -> None:
    *_, check = on_others._compared("x", found, ar, Comparison(Noise(1.0, 0.1**2 * 100), values=100))
    assert check.passed is held
    for first, second in found.tied[:1]:
        assert f"1 of them near-ties: {first:.2f} and {second:.2f}" in check.measured


def test_values_that_held_out_text_takes_out_of_their_range_are_said() -> None:
    subject, precision = stand(), {}  # type: ignore[var-annotated]
    narrow = Encodings({"blocks.0.out": Encoding.from_range(-0.1, 0.1, 16)})
    subject.quantized = replace(subject.quantized, encodings=narrow)
    *_, beyond = on_runtimes.lowering_holds(subject, precision)
    assert beyond.measured.startswith("1 of 1, most 0.")
    assert beyond.measured.endswith("of the numbers of 'blocks.0.out'")
    assert 0.5 < precision["clipped"]["blocks.0.out"] < 1


@pytest.mark.parametrize(("off", "rounding", "held"), [(1, 0, True), (2, 0, False), (10, 5, True), (11, 5, False)])
def test_keys_and_values_may_be_a_step_off_as_often_as_roundings_make_them(off: int, rounding: int, held: bool) -> None:
    cost = Comparison(kv_off=rounding, kv_count=100)
    found = on_others._compared("x", Comparison(kv_off=off, kv_count=100), 32, cost)
    (check,) = (c for c in found if "keys and values" in c.name)
    assert check.passed is held


def report(error: float, bound: float) -> PassReport:
    return PassReport("some", 0.0, True, {}, {"prompt": error, "calibration": 9.0}, bound)


@pytest.mark.parametrize(("error", "bound", "held"), [(1e-5, 1e-4, True), (0.3, 0.5, True), (0.3, 1e-4, False)])
def test_passes_are_judged_by_the_bound_in_their_report(error: float, bound: float, held: bool) -> None:
    subject = stand()
    first, between = in_float.passes_hold(subject, [report(error, bound)])
    assert (first.name, first.passed) == ("prompt after some, largest difference of a logit over the largest", held)
    assert between.passed
    assert subject.float_weights is subject.weights  # what the passes left


def test_source_is_measured_against_its_reference() -> None:
    subject = stand()
    (check,) = in_float.source_is_right(subject, {})
    assert (check.measured, check.passed) == ("not run: no implementation", None)

    def reference(change: float) -> Any:
        graph = trace(tiny_causal(), AR, AR, "source")
        logits = Decoder([TorchRunner(graph, subject.weights)], None).read(WINDOWS[0])
        return lambda: lambda _ids: torch.from_numpy(logits + np.float32(change))[None]

    for change, held in ((0.0, True), (1e-3, False)):
        subject.checkpoint.source.reference = reference(change)
        (check,) = in_float.source_is_right(subject, {})
        assert check.passed is held


def test_what_was_computed_beside_the_conversion_is_judged() -> None:
    subject, figures, ahead = stand(), {}, Future[in_float.SourceInFloat]()
    ahead.set_result(in_float.SourceInFloat(0.5, 7.25, {"head.weight": "a"}))
    held: list[Mapping[str, str]] = []
    subject.check_converted = held.append
    (check,) = in_float.source_is_right(subject, figures, ahead)
    assert (check.measured, check.passed, figures, held) == ("0.5", False, {"float": 7.25}, [{"head.weight": "a"}])


@pytest.mark.parametrize("ended", [True, False])
def test_where_the_process_beside_it_failed_or_hangs_the_source_is_computed_here(
    monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    subject, figures, ahead = stand(), {}, Future[in_float.SourceInFloat]()
    monkeypatch.setattr(in_float, "PATIENCE", 0.01)
    if ended:
        ahead.set_exception(BrokenProcessPool("killed"))
    (check,) = in_float.source_is_right(subject, figures, ahead)
    assert check.measured == "not run: no implementation"
    assert figures["float"] > 1


def test_without_a_checkpoint_nothing_is_claimed() -> None:
    subject = stand()
    subject.checkpoint = None
    checks = [*in_float.source_is_right(subject, {}), *in_float.passes_hold(subject, None)]
    assert [(c.step, c.measured, c.passed) for c in checks] == [(1, subject.gone, None), (2, subject.gone, None)]


def measure(subject: Any, figures: dict[str, float]) -> None:
    """Float, and everything quantized on the first runtime, as earlier steps do."""
    list(in_float.source_is_right(subject, figures))
    with subject.open("first", "prompt") as (runner,):
        on_text.measure_quantized(subject, figures, "prompt", runner)


def test_perplexity_is_measured_of_each_kind() -> None:
    figures: dict[str, float] = {}
    subject = stand(first=0.0)
    measure(subject, figures)
    shown, activations, quantized = on_text.perplexity_holds(subject, figures)
    assert figures.keys() == {"float", "activations", "quantized"}
    assert figures["activations"] == figures["quantized"]  # the stand's runtime rounds nothing else
    assert (shown.passed, activations.passed, quantized.passed) == (None, True, True)
    subject.unmeasured = "not run: a reason"
    measure(subject, other := {})
    (check,) = on_text.perplexity_holds(subject, other)
    assert (check.measured, check.passed, other) == ("not run: a reason", None, {})
    measure(stand(first=2.0), other := {})
    assert other["quantized"] != figures["quantized"]


def test_activations_are_measured_over_the_weights_that_the_passes_left() -> None:
    figures: dict[str, float] = {}
    subject = stand()
    tensors = subject.weights.tensors
    subject.float_weights = DictStore({**tensors, "head.weight": tensors["head.weight"] * 3})
    measure(subject, figures)
    list(on_text.perplexity_holds(subject, figures))
    assert figures["activations"] != pytest.approx(figures["quantized"])


@pytest.mark.parametrize(
    ("activations", "quantized", "held"), [(10.1, 11.0, (True, True)), (10.11, 11.01, (False, False))]
)
def test_perplexity_is_judged_by_its_ratio(activations: float, quantized: float, held: tuple[bool, bool]) -> None:
    figures = {"float": 10.0, "activations": activations, "quantized": quantized}
    shown, *judged = on_text._judged(figures, "first", "3 windows of 8 tokens", measured_now=False)
    measured = "10.00 on 3 windows of 8 tokens (measured at conversion)"
    assert shown == Check(6, "perplexity of the source in float", measured)
    assert tuple(c.passed for c in judged) == held
