"""Signal over quantization noise."""

from __future__ import annotations

from math import log10


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise), of sums of squares; None without noise, and without a signal to compare it with."""
    return 10 * log10(signal / noise) if signal > 0 and noise > 0 else None
