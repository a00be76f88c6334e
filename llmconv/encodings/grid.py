"""Grids, and numbers on them as integers and scales: the one codec of weights and values, on disk and in graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # who reads a bundle's figures does not wait for it
    import torch


@dataclass(frozen=True)
class PerTensor:
    """One scale."""


@dataclass(frozen=True)
class PerRow:
    """A scale for each row."""


Granularity = PerTensor | PerRow


@dataclass(frozen=True)
class Grid:
    """The integers that a number can become.

    Attributes:
        bits: of an integer.
        symmetric: signed integers around zero; else unsigned ones, with a zero point.
    """

    bits: int
    granularity: Granularity = PerTensor()
    symmetric: bool = True

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -(1 << self.bits - 1) if self.symmetric else 0

    @property
    def top(self) -> int:
        """The largest integer."""
        return self.low + (1 << self.bits) - 1

    def encode(self, x: torch.Tensor, scale: torch.Tensor, zero_point: int = 0) -> Encoded:
        """The nearest integers at given scales: int8, or int32 above 8 bits.

        Args:
            scale: (rows,) or (1,) float32.
        """
        ints = to_integers(x, _along(scale, x), zero_point, self.low, self.top)
        return Encoded(ints.char() if self.symmetric and self.bits <= 8 else ints.int(), scale, zero_point, self)


@dataclass(frozen=True)
class Encoded:
    """Numbers on a grid: real = (integer - zero_point) * scale.

    Attributes:
        scale: (rows,) or (1,) float32.
    """

    ints: torch.Tensor
    scale: torch.Tensor
    zero_point: int
    grid: Grid

    def dequantize(self) -> torch.Tensor:
        """The numbers as float32."""
        return to_floats(self.ints, _along(self.scale, self.ints), self.zero_point)


class Block(NamedTuple):
    """Some rows of a weight as they were read, float32, and on their grid; without a grid they stay float."""

    exact: torch.Tensor
    encoded: Encoded | None


def _along(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return scale.reshape(-1, *[1] * (x.ndim - 1))


def to_integers(x: torch.Tensor, scale: torch.Tensor | float, zero_point: int, low: int, top: int) -> torch.Tensor:
    """Integers, as floats; rounds half to even as ONNX does."""
    return (x / scale).round_().add_(zero_point).clamp_(low, top)


def to_floats(ints: torch.Tensor, scale: torch.Tensor | float, zero_point: int) -> torch.Tensor:
    """Floats of integers."""
    return (ints.float() - zero_point) * scale
