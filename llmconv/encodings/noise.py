"""Signal over quantization noise, SQNR."""

from __future__ import annotations

from math import inf, isfinite, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray


def squares(reference: NDArray[Any], other: NDArray[Any]) -> tuple[float, float]:
    """Sums of squares in float64: of a reference, the signal, and of what another differs from it by, the noise."""
    exact = reference.astype(np.float64)
    return float(np.square(exact).sum()), float(np.square(exact - other).sum())


def sqnr(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of sums of squares, dB; infinite without noise, minus infinity without signal."""
    if noise == 0:
        return inf
    return 10 * log10(signal / noise) if signal > 0 else -inf


def decibels(signal: float, noise: float) -> float | None:
    """The same for a report in JSON, which has no infinity: None instead."""
    ratio = sqnr(signal, noise)
    return ratio if isfinite(ratio) else None
