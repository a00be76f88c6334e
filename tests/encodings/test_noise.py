"""Signal over noise, against what comes out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llmconv.encodings import Noise


def array(*values: object) -> Any:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    ("reference", "other", "expected"),
    [
        (array(10.0, 0.0), array(9.0, 0.0), 20.0),  # 100 over 1
        (array(3.0, 4.0), array(3.0, 4.5), 20.0),  # 25 over 0.25
        (array(1.0, 1.0), array(0.0, 0.0), 0.0),
        (array(1.0), array(11.0), -20.0),
    ],
)
def test_sqnr_by_hand(reference: Any, other: Any, expected: float) -> None:
    assert Noise().add(reference, other).sqnr == pytest.approx(expected)


def test_sqnr_of_equal_values_is_infinite() -> None:
    assert math.isinf(Noise().add(array(1.0, 2.0), array(1.0, 2.0)).sqnr)


def test_sqnr_sums_in_float64() -> None:
    big = np.full(10, 1e19, dtype=np.float32)  # whose squares float32 does not hold
    assert Noise().add(big, big * np.float32(0.9)).sqnr == pytest.approx(20.0, abs=1e-3)  # 0.9 is rounded to float32


def test_large_arrays_are_summed_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 256, (2, 5, 7)).astype(np.uint8)
    whole = Noise().add(a, b, 128)
    assert whole.signal == float(((a.astype(int) - 128) ** 2).sum())
    assert whole.noise == float(((a.astype(int) - b) ** 2).sum())
    monkeypatch.setattr("llmconv.encodings.noise.AT_ONCE", 3)
    assert Noise().add(a.T, b.T, 128) == whole  # neither contiguous nor a multiple of three


def test_sums_over_calls() -> None:
    noise = Noise()
    noise.add(array(10.0, 0.0), array(9.0, 0.0))
    noise.add(array(0.0, 20.0), array(2.0, 20.0))
    assert noise == Noise(500.0, 5.0)
    assert noise.decibels == pytest.approx(20.0)


def test_report_has_no_infinity() -> None:
    assert Noise(1.0, 0.0).decibels is None
    assert Noise(0.0, 1.0).decibels is None
    assert Noise(0.0, 1.0).sqnr == -math.inf
