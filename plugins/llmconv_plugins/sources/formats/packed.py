"""A weight that a checkpoint keeps as integers, scales and zero points: what the formats have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from llmconv import CheckpointError
from llmconv.encodings import fitted
from llmconv.weights import Coded, Expression, IntegerStore, WeightStore

WORD = 32  # bits of the integers that hold several
SEVERAL = "weights of several widths are not implemented; use the model before it was quantized"
ASYMMETRIC = "it has zero points, which QNN's weights lack"
SCATTERED = "the columns of its groups do not lie side by side (desc_act)"


@dataclass(frozen=True)
class Packed(Expression):
    """weight[o, i] = (integer[o, i] - zero_point[o, group of i]) * scale[o, group of i].

    Attributes:
        stem: of the tensors' names.
        bits: of an integer.
    """

    stem: str
    bits: int

    @abstractmethod
    def levels(self, store: IntegerStore, start: int, stop: int) -> Tensor:
        """Integers of some rows, less their zero points, (rows, columns) int16."""

    @abstractmethod
    def scales(self, store: IntegerStore) -> Tensor:
        """(rows, groups) in the type that the file has."""

    @abstractmethod
    def centred(self, store: IntegerStore) -> bool:
        """Whether every zero point is in the middle."""

    def groups(self, store: IntegerStore, columns: int, count: int) -> Tensor:
        """The group of each column; by default they lie side by side."""
        return torch.arange(columns) // -(-columns // count)

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads the integers of these."""
        found = integers(store)
        levels, scales = self.levels(found, start, stop), self.scales(found)[start:stop].float()
        return levels.float() * scales[:, self.groups(found, levels.shape[1], scales.shape[1])]

    def coded(self, store: WeightStore) -> Coded | str | None:
        """Where a grid of QNN has these scales, and no zero point is off the middle."""
        found, (rows, columns) = integers(store), self.shape(store)
        if not self.centred(found):
            return ASYMMETRIC
        scales = self.scales(found)
        side_by_side = torch.arange(columns) // -(-columns // scales.shape[1])
        if not torch.equal(self.groups(found, columns, scales.shape[1]), side_by_side):
            return SCATTERED
        tolerance = torch.finfo(scales.dtype).eps / 2  # what rounding to that type does
        grid = fitted(scales.float(), -(-columns // scales.shape[1]), self.bits, tolerance)
        return grid if isinstance(grid, str) else Coded(*grid, lambda: self.levels(found, 0, rows).to(torch.int8))


def integers(store: WeightStore) -> IntegerStore:
    """The files' own store.

    Raises:
        CheckpointError: it reads floats alone.
    """
    if not isinstance(store, IntegerStore):
        raise CheckpointError("integers lie in safetensors and pytorch_model.bin files alone")
    return store


def unpacked(words: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """(rows, words) int32 to (rows, words * count) int16, unsigned; the lowest bits come first.

    Args:
        order: of a word's integers: the place in the word of each.
    """
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    found = (words[..., None] >> shifts) & ((1 << bits) - 1)
    return (found if order is None else found[..., list(order)]).flatten(-2).to(torch.int16)
