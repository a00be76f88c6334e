"""What rounding costs, value by value: each activation against itself on its grid, each tensor against its twin."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from llmconv.bundle.specs import TensorSpec
from llmconv.encodings.noise import decibels, squares
from llmconv.encodings.value import Encodings
from llmconv.graph.model import name_of

_HEAD = re.compile(r"\.h\d+")


class Noise:
    """Sums of squares by tensor, of the signal and of the noise."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, name: str, signal: float, noise: float) -> None:
        """Add to a tensor's sums."""
        before = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (before[0] + signal, before[1] + noise)

    def ratios(self) -> dict[str, float | None]:
        """SQNR of each tensor in dB, None where nothing was lost."""
        return {name: decibels(*sums) for name, sums in self._sums.items()}


class RoundingNoise(Noise):
    """Observes a run: every value that has an encoding, before and after it is rounded; heads count as one tensor."""

    def __init__(self, encodings: Encodings | None) -> None:
        super().__init__()
        self.encodings = encodings.values if encodings is not None else {}

    def observe(self, node: fx.Node, value: Tensor) -> None:
        """Take a value that has not been rounded yet."""
        encoding = self.encodings.get(name_of(node))
        if encoding is not None:
            exact = value.double()
            lost = encoding.fake_quantize(value).double() - exact
            self.add(_HEAD.sub("", name_of(node)), float(exact.square().sum()), float(lost.square().sum()))


class TensorNoise(Noise):
    """The integers of two runs of the same parts, the first of them the signal."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        super().__init__()
        self.specs = specs

    def compare(self, first: Mapping[str, NDArray[np.generic]], second: Mapping[str, NDArray[np.generic]]) -> None:
        """Add the outputs of one run; scales cancel."""
        for name, spec in self.specs.items():
            zero = spec.encoding.zero_point if spec.encoding is not None else 0
            self.add(name, *squares(first[name].astype(np.float64) - zero, second[name].astype(np.float64) - zero))
