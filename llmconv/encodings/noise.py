"""Signal over quantization noise, SQNR."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 1 << 20  # numbers that are held in float64: of the logits of a run, all would be a tenth of a gigabyte


@dataclass
class Noise:
    """Sums of squares in float64.

    Attributes:
        signal: of the reference.
        noise: of what the other differs from it by.
    """

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: NDArray[Any], other: NDArray[Any], zero: int = 0) -> Noise:
        """Add two arrays of one shape to the sums.

        Args:
            zero: what stands for 0 in both, of integers.
        """
        a, b = reference.reshape(-1), other.reshape(-1)
        for i in range(0, a.size, AT_ONCE):
            exact = a[i : i + AT_ONCE].astype(np.float64)
            self.noise += float(np.square(exact - b[i : i + AT_ONCE]).sum())
            self.signal += float(np.square(exact - zero).sum())
        return self

    def __add__(self, other: Noise) -> Noise:
        """Of all arrays that were added to either."""
        return Noise(self.signal + other.signal, self.noise + other.noise)

    @property
    def sqnr(self) -> float:
        """10 log10(signal / noise), dB; infinite without noise, minus infinity without signal."""
        if self.noise == 0:
            return inf
        return 10 * log10(self.signal / self.noise) if self.signal > 0 else -inf

    @property
    def decibels(self) -> float | None:
        """The same for a report in JSON, which has no infinity: None instead."""
        return self.sqnr if isfinite(self.sqnr) else None
