"""A weight that lies on a grid in the checkpoint already: its integers as they are stored, and their scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from llmconv.encodings.fitting import BLOCKS
from llmconv.encodings.grid import Encoded, Grid, PerBlock


@dataclass(frozen=True)
class Coded:
    """Scales of a weight, and its integers when they are asked for.

    Attributes:
        scale: (rows,) float32.
        multipliers: (rows, blocks) uint8 of a grid in blocks.
        ints: reads all of them, (rows, columns) int8.
    """

    grid: Grid
    scale: Tensor
    multipliers: Tensor | None
    ints: Callable[[], Tensor]

    def read(self) -> Encoded:
        """With the integers."""
        return Encoded(self.ints(), self.scale, 0, self.grid, self.multipliers)

    @property
    def block(self) -> int:
        """Columns of a block; 0 where a row has one scale."""
        return self.grid.granularity.columns if isinstance(self.grid.granularity, PerBlock) else 0

    def picked(self, rows: Tensor) -> Coded:
        """Some of the rows, in another order."""
        blocks = None if self.multipliers is None else self.multipliers[rows]
        return replace(self, scale=self.scale[rows], multipliers=blocks, ints=lambda: self.ints()[rows])

    def scaled(self, by: Tensor | float) -> Coded:
        """Each row, or all, times a number above 0."""
        return replace(self, scale=self.scale * by)

    def in_blocks(self, columns: int) -> Coded:
        """The same on a grid of smaller blocks."""
        assert self.multipliers is not None
        repeated = self.multipliers.repeat_interleave(self.block // columns, dim=1)
        return replace(self, grid=Grid(self.grid.bits, PerBlock(columns)), multipliers=repeated)

    def smaller(self) -> list[Coded]:
        """On every grid that holds it, the largest blocks first."""
        return [self.in_blocks(block) for block in BLOCKS if block <= self.block] if self.block else [self]


@runtime_checkable
class CodedStore(Protocol):
    """A store that knows which of its weights lie on a grid."""

    def coded(self, name: str) -> Coded | str | None:
        """A weight on its grid; why no grid holds its integers; None of one that has none."""
        ...


def coded_of(store: object, name: str) -> Coded | str | None:
    """As of `CodedStore`; None of stores that know nothing of grids."""
    return store.coded(name) if isinstance(store, CodedStore) else None


def joined(parts: list[Coded | str | None]) -> Coded | str | None:
    """Weights on top of each other, where one grid holds all of them."""
    found = [part for part in parts if isinstance(part, Coded)]
    if len(found) < len(parts):
        some = "only some of its rows have integers" if found else None
        return next((part for part in parts if isinstance(part, str)), some)
    if len({part.grid for part in found}) > 1:
        return "its rows lie on several grids"
    multipliers = [part.multipliers for part in found if part.multipliers is not None]
    blocks, scale = torch.cat(multipliers) if multipliers else None, torch.cat([part.scale for part in found])
    return Coded(found[0].grid, scale, blocks, lambda: torch.cat([part.ints() for part in found]))
