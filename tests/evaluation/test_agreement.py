"""Figures of a comparison, against what comes out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmconv.bundle import Check, GraphSpec, PartSpec, TensorSpec
from llmconv.bundle.check import at_least, at_most
from llmconv.decoding import Arrays
from llmconv.decoding.decoder import Tensor
from llmconv.encodings import Encoding, Noise
from llmconv.evaluation.agreement import Comparison, PairedRunner, Recorder
from llmconv.graph import IO
from llmconv.runtimes import PartsRunner


def array(*values: object) -> Any:
    return np.array(values, dtype=np.float32)


def test_logits_sum_over_all_rows_and_calls() -> None:
    comparison = Comparison()
    comparison.add_logits(array([10.0, 0.0]), array([9.0, 0.0]))
    comparison.add_logits(array([0.0, 10.0], [10.0, 0.0]), array([0.0, 10.0], [10.0, 2.0]))
    assert (comparison.logits, comparison.positions) == (Noise(300.0, 5.0), 3)
    assert math.isinf(Comparison().logits.sqnr)


def test_choices_that_agree() -> None:
    comparison = Comparison()
    comparison.add_logits(array([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]), array([0.0, 0.0, 9.0], [0.0, 9.0, 0.0]), 1.0)
    assert (comparison.positions, comparison.same_token, comparison.tied) == (2, 1, [(3.0, 2.0)])


@pytest.mark.parametrize(
    ("first", "step", "ties"),
    [
        ([2.0, 2.0, 0.0], 0.0, 1),  # equal in the first
        ([2.0, 1.0, 0.0], 1.0, 1),  # one step apart
        ([3.0, 1.0, 0.0], 1.0, 0),  # two steps apart
        ([3.0, 1.0, 2.9], 2.0, 1),  # one step apart, however close another logit lies
        ([2.0, 1.0, 0.0], 0.0, 0),  # floats have no step
    ],
)
def test_tie_is_within_one_step_of_the_first(first: list[float], step: float, ties: int) -> None:
    comparison = Comparison()
    comparison.add_logits(array(first), array([0.0, 9.0, 0.0]), step)
    assert (comparison.same_token, len(comparison.tied)) == (0, ties)


def test_counts_are_numbers_of_python() -> None:
    comparison = Comparison()
    comparison.add_logits(array([1.0, 2.0]), array([1.0, 2.0]))
    comparison.add_kv(np.array([7], np.uint8), np.array([9], np.uint8))
    assert json.dumps(asdict(comparison))


def test_keys_and_values_may_be_one_step_apart() -> None:
    comparison = Comparison()
    assert comparison.kv_off_share == 0.0
    comparison.add_kv(np.array([0, 10, 255], np.uint8), np.array([1, 12, 0], np.uint8))
    comparison.add_kv(np.array([7], np.uint8), np.array([6], np.uint8))
    assert (comparison.kv_off, comparison.kv_count, comparison.kv_off_share) == (2, 4, 0.5)
    comparison.add_kv(np.array([0, 300, -300], np.int16), np.array([256, 10, 0], np.int16))  # in steps of 8 bits
    assert (comparison.kv_off, comparison.kv_count) == (4, 7)


@dataclass
class Fixed:
    """Gives what it holds."""

    found: Arrays
    raw: Arrays
    name: str = "g"
    ar: int = 1
    context: int = 2

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        return {"ids": Tensor(IO("input_ids"), (1, 1))}

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        return {"logits": Tensor(IO("logits"), (1, 1, 2)), "key": Tensor(IO("new_key", 0, 0, 3), (1, 1, 1, 1))}

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        return self.found


def test_pair_gives_the_first_and_compares_integers_of_the_cache() -> None:
    first = Fixed({"logits": array([[10.0, 0.0]]), "key": array(0.5)}, {"key": np.array([100], np.uint8)})
    second = Fixed({"logits": array([[9.0, 0.0]]), "key": array(0.9)}, {"key": np.array([103], np.uint8)})
    comparison = Comparison()
    pair = PairedRunner(first, second, comparison)
    assert (pair.name, pair.ar, pair.context, set(pair.inputs)) == ("g", 1, 2, {"ids"})
    assert pair.run({}) is first.found
    assert comparison.logits.sqnr == pytest.approx(20.0)
    assert (comparison.kv_off, comparison.kv_count, comparison.same_token) == (1, 1, 1)


def test_a_pair_of_which_one_caches_floats() -> None:
    class Taking(Fixed):
        encoding: Encoding | None = None

        @property
        def inputs(self) -> Mapping[str, Tensor]:
            return {"past": Tensor(IO("past_key", 0, 0, 3), (1, 1, 1, 1), self.encoding)}

        def run(self, inputs: Mapping[str, Any]) -> Arrays:
            self.raw = {**inputs, "key": array(0.0)}
            return {"logits": array([[1.0, 0.0]]), "key": array(0.0)}

    first, second = Taking({}, {}), Taking({}, {})
    first.encoding = Encoding(8, 0.5, 128)
    PairedRunner(first, second, Comparison()).run({"past": np.full((1, 1, 1, 1), 130, np.uint8)})
    assert first.raw["past"].tolist() == [[[[130]]]]
    assert second.raw["past"].tolist() == [[[[1.0]]]]


def test_what_was_recorded_is_given_again_without_the_runner(tmp_path: Path) -> None:
    runner = Fixed({"logits": array([[10.0, 0.0]]), "key": array(0.5)}, {"logits": array(7.0), "key": array(100.0)})
    recorder, cache = Recorder(runner, tmp_path), np.array([1, 2], np.uint8)
    for number in range(2):
        cache[0] = number
        assert recorder.run({"past": cache}) is runner.found
    recorded, found = recorder.recorded(), runner.found
    runner.found, cache[0] = {}, 9  # the runner may be gone, and its cache goes on changing
    assert [inputs["past"].tolist() for inputs in recorded.given()] == [[0, 2], [1, 2]]
    assert (recorded.name, recorded.ar, recorded.context, recorded.outputs) == ("g", 1, 2, runner.outputs)
    for _ in range(2):
        again = recorded.run({})
        assert {name: value.tolist() for name, value in again.items()} == {n: v.tolist() for n, v in found.items()}
        assert (recorded.raw["logits"], recorded.raw["key"]) == (7.0, 100.0)


def test_pair_of_parts_compares_every_output_about_its_zero_point() -> None:
    def spec(name: Any, shape: tuple[int, ...], scale: float, zero: int) -> TensorSpec:
        encoding = Encoding(8, scale, zero)
        return TensorSpec(name, shape, "uint8", name, None, None, None, encoding)

    outputs = (spec("hidden", (1, 2), 9.0, 128), spec("logits", (1, 1, 2), 0.5, 0))
    graph = GraphSpec("g", 1, 2, (PartSpec("g_1", "f", (), outputs),))

    def runner(hidden: list[int], logits: list[int]) -> PartsRunner:
        found = {"hidden": np.array([hidden], np.uint8), "logits": np.array([[logits]], np.uint8)}
        return PartsRunner(graph, lambda _part, _inputs: found)

    comparison = Comparison()
    pair = PairedRunner(runner([138, 128], [3, 4]), runner([137, 128], [4, 3]), comparison)
    pair.run({})
    pair.run({})
    assert pair.noise["hidden"] == Noise(200.0, 2.0)  # 10² over 1², twice
    assert pair.noise["logits"] == Noise(50.0, 4.0)
    assert (comparison.same_token, comparison.tied) == (0, [(2.0, 1.5)] * 2)  # one step of 0.5 apart


def test_failed_check_of_numpy_numbers_is_false_and_goes_into_a_report() -> None:
    checks = [at_least(3, "ratio", np.float64(4.0), 50.0), Check(4, "off", "9%", "≤ 1%", np.float64(0.09) <= 0.01)]
    assert all(check.passed is False for check in checks)
    assert json.dumps([check.to_dict() for check in checks])


def test_checks_pass_at_their_bounds() -> None:
    assert at_most(1, "error", 1e-4, 1e-4) == Check(1, "error", "0.0001", "≤ 1e-04", True)
    assert at_most(1, "error", 1.1e-4, 1e-4).passed is False
    assert at_most(1, "error", float("nan"), 1e-4).passed is False
    assert at_least(2, "ratio", 50.0, 50.0) == Check(2, "ratio", "50.0 dB", "≥ 50 dB", True)
    assert at_least(2, "ratio", 49.9, 50.0).passed is False
    assert Check(3, "shown", "7").to_dict() == {
        "step": 3,
        "name": "shown",
        "measured": "7",
        "bound": "",
        "passed": None,
        "advice": "",
    }
