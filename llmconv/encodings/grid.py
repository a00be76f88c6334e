"""Grids, and numbers on them as integers and scales: the one codec of weights and values, on disk and in graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from llmconv.heap import empty

if TYPE_CHECKING:  # who reads a bundle's figures does not wait for it
    import torch


@dataclass(frozen=True)
class PerTensor:
    """One scale."""


@dataclass(frozen=True)
class PerRow:
    """A scale for each row."""


@dataclass(frozen=True)
class PerBlock:
    """A scale for each row, times an integer from 1 to 16 for each block of so many columns (QNN's LPBQ)."""

    columns: int


Granularity = PerTensor | PerRow | PerBlock
MULTIPLIERS = 16  # of a row's scale that a block may have


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

    def encode(
        self,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: int = 0,
        multipliers: torch.Tensor | None = None,
        room: torch.Tensor | None = None,
    ) -> Encoded:
        """The nearest integers at given scales: int8, or int32 above 8 bits.

        Args:
            scale: (rows,) or (1,) float32.
            multipliers: (rows, blocks) of a grid in blocks.
            room: float32, as large as x, to compute in.
        """
        ints = to_integers(x, scales_along(scale, x, multipliers), zero_point, self.low, self.top, room)
        kept = ints.char() if self.symmetric and self.bits <= 8 else ints.int()
        return Encoded(kept, scale, zero_point, self, multipliers)


@dataclass(frozen=True)
class Encoded:
    """Numbers on a grid: real = (integer - zero_point) * scale.

    Attributes:
        scale: (rows,) or (1,) float32.
        multipliers: (rows, blocks) uint8, of the row's scale, of a grid in blocks.
    """

    ints: torch.Tensor
    scale: torch.Tensor
    zero_point: int
    grid: Grid
    multipliers: torch.Tensor | None = None

    def dequantize(self) -> torch.Tensor:
        """The numbers as float32."""
        return to_floats(self.ints, scales_along(self.scale, self.ints, self.multipliers), self.zero_point)

    def rows(self, start: int, stop: int) -> Encoded:
        """Some of the rows."""
        blocks = None if self.multipliers is None else self.multipliers[start:stop]
        scale = self.scale if isinstance(self.grid.granularity, PerTensor) else self.scale[start:stop]
        return Encoded(self.ints[start:stop], scale, self.zero_point, self.grid, blocks)


class Block(NamedTuple):
    """Some rows of a weight as they were read, float32, and on their grid; without a grid they stay float."""

    exact: torch.Tensor
    encoded: Encoded | None


def block_scales(scale: torch.Tensor, multipliers: torch.Tensor) -> torch.Tensor:
    """The scale of each block, (rows, blocks) float32, as every reader computes it."""
    return scale[:, None] * multipliers.float()


def scales_along(scale: torch.Tensor, x: torch.Tensor, multipliers: torch.Tensor | None) -> torch.Tensor:
    """The scale of every number, in a shape that goes with theirs."""
    if multipliers is None:
        return scale.reshape(-1, *[1] * (x.ndim - 1))
    columns = x[0].numel() // multipliers.shape[1]
    return block_scales(scale, multipliers).repeat_interleave(columns, dim=1).reshape(x.shape)


def to_integers(
    x: torch.Tensor, scale: torch.Tensor | float, zero_point: int, low: int, top: int, room: torch.Tensor | None = None
) -> torch.Tensor:
    """Integers, as floats, which lie in the room where one is given; rounds half to even as ONNX does."""
    import torch  # noqa: PLC0415  as above

    found = torch.div(x.detach(), scale, out=empty(x.shape) if room is None else room).round_()
    return (found.add_(zero_point) if zero_point else found).clamp_(low, top)


def to_floats(ints: torch.Tensor, scale: torch.Tensor | float, zero_point: int) -> torch.Tensor:
    """Floats of integers."""
    found = empty(ints.shape).copy_(ints)
    return (found.sub_(zero_point) if zero_point else found).mul_(scale)
