"""Round weights to the nearest integers of their grids, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import ClassVar

import torch

from llmconv.bundle.part_file import WeightFile
from llmconv.encodings.grid import MULTIPLIERS, Block, Encoded, Grid, PerBlock
from llmconv.encodings.value import Encoding, Encodings, WeightEncoding
from llmconv.quantization.moments import Moments
from llmconv.quantization.quantizer import Quantizer
from llmconv.weights.store import WeightStore

_BLOCK = 1 << 18  # elements of the rows that are quantized at once: small enough for a core's cache
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Nearest(Quantizer):
    """Round each number to the nearest integer, with scales that hold the largest.

    Needs no calibration text, and takes no longer than reading the weights.
    """

    name: ClassVar[str] = "nearest"

    def quantize(self, weight: torch.Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        """As `Quantizer.quantize`."""
        return grid.encode(weight, *scales_of(weight, grid))


def nearest(weight: torch.Tensor, how: WeightEncoding) -> Encoded:
    """A weight, or some rows of one whose encoding is not its own range, on its grid."""
    if not how.per_row:
        encoding = how.encoding or _range_of(weight, how.bits)
        return encoding.grid.encode(weight, torch.tensor([encoding.scale]), encoding.zero_point)
    return how.grid.encode(weight, *scales_of(weight, how.grid))


def scales_of(weight: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, int, torch.Tensor | None]:
    """The smallest scales that hold every number of a weight, as `Grid.encode` takes them.

    Args:
        grid: symmetric, with a scale for each row or block.
    """
    flat = weight.reshape(weight.shape[0], -1)
    if not isinstance(grid.granularity, PerBlock):
        largest = torch.maximum(flat.amax(dim=1), -flat.amin(dim=1))  # aminmax takes 8 times as long
        return (largest / grid.top).clamp_min_(_TINY), 0, None
    largest = flat.reshape(len(flat), -1, grid.granularity.columns).abs().amax(dim=2)
    return on_block_grid(largest / grid.top)


def on_block_grid(wanted: torch.Tensor) -> tuple[torch.Tensor, int, torch.Tensor]:
    """A scale for each row and a multiplier for each block, so that no block's scale is less than what it wants.

    Args:
        wanted: (rows, blocks) float32.
    """
    scale = (wanted.amax(dim=1) / MULTIPLIERS).clamp_min_(_TINY)
    multipliers = torch.ceil(wanted / scale[:, None] - 1e-4).clamp_(1, MULTIPLIERS)  # of 16.00001, 16
    return scale, 0, multipliers.to(torch.uint8)


def _range_of(weight: torch.Tensor, bits: int) -> Encoding:
    low, high = torch.aminmax(weight)
    return Encoding.from_range(float(low), float(high), bits)


def nearest_blocks(weight: torch.Tensor, how: WeightEncoding | None) -> Iterator[Block]:
    """A weight that has been read, as a part file takes it; None leaves it float."""
    if how is not None and not how.per_row and how.encoding is None:
        how = replace(how, encoding=_range_of(weight, how.bits))
    return _blocks(lambda rows: weight if rows is None else weight[rows], tuple(weight.shape), how)


def encoded_blocks(weight: torch.Tensor, encoded: Encoded) -> Iterator[Block]:
    """A weight that a quantizer has put on its grid, as a part file takes it."""
    for rows in _row_slices(tuple(weight.shape)):
        yield Block(weight[rows], encoded.rows(rows.start, rows.stop))


def place(file: WeightFile, store: WeightStore, encodings: Encodings, name: str) -> None:
    """Read a weight some rows at a time and write it, unless it is written."""
    if name in file.placed:
        return
    how, shape = encodings.weights.get(name), store.shape(name)
    if name in encodings.quantized:
        file.write(name, shape, encoded_blocks(store.read(name), encodings.quantized[name]))
    elif how is not None and not how.per_row and how.encoding is None:  # its range is that of all rows
        file.write(name, shape, nearest_blocks(store.read(name), how))
    else:
        file.write(name, shape, _blocks(partial(store.read, name), shape, how))


def _blocks(
    read: Callable[[slice | None], torch.Tensor], shape: tuple[int, ...], how: WeightEncoding | None
) -> Iterator[Block]:
    for rows in _row_slices(shape) if shape else [None]:
        block = read(rows)
        yield Block(block, None if how is None else nearest(block, how))


def _row_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, _BLOCK // max(1, prod(shape[1:])))
    return (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))
