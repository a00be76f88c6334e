"""Signal over quantization noise, SQNR."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Noise:
    """Sums of squares in float64.

    Attributes:
        signal: of the reference.
        noise: of what the other differs from it by.
    """

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: NDArray[Any], other: NDArray[Any]) -> Noise:
        """Add two arrays of one shape to the sums."""
        exact = reference.astype(np.float64)
        self.signal += float(np.square(exact).sum())
        self.noise += float(np.square(exact - other).sum())
        return self

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
