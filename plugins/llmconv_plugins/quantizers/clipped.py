"""Round to nearest, on scales that clip what it pays to clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import local
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from llmconv.cores import OwnCores
from llmconv.encodings import Encoded, Grid, PerBlock
from llmconv.heap import empty
from llmconv.quantization import Moments, Quantizer, on_block_grid

RATIOS = torch.linspace(1.0, 0.5, 26)  # of the scale that clips nothing
# Every sixth is tried, then those at some steps beside the best: 0.03 % more error than that of the best of all 26. The
# error of a short block has dents between them: with every third 0.4 % more, with every sixth 1.3 %.
_OF_ROWS, _OF_BLOCKS = (6, 3, 1), (3, 1)
_ROWS = 1 << 20  # elements of the rows that are searched at once: few enough for a cache, enough for Python beside them

Scales = tuple[Tensor, int, Tensor | None]
Use = Callable[[slice, Scales, Tensor], None]


def _nothing(_rows: slice, _scales: Scales, _room: Tensor) -> None:
    """No use is made of them."""


@dataclass(frozen=True)
class Clipped(Quantizer):
    """Round to nearest, on the scales of least error, each column's counted by how large its inputs are.

    By the error of the weight alone it would ruin a real model: SmolLM2's perplexity went from 1.87 to 4.30 times the
    float one.
    """

    name: ClassVar[str] = "clipped"
    needs_inputs: ClassVar[bool] = True

    @property
    def needs_products(self) -> bool:
        """The importance of columns is enough."""
        return False

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        """As `Quantizer.quantize`."""
        importance = torch.ones(weight.shape[1]) if inputs is None else inputs.importance
        ints = empty(weight.shape, np.int8)

        def encode(rows: slice, scales: Scales, room: Tensor) -> None:
            ints[rows] = grid.encode(weight[rows], *scales, room).ints

        scale, zero_point, multipliers = clipped_scales(weight, grid, importance, encode)
        return Encoded(ints, scale, zero_point, grid, multipliers)


def clipped_scales(weight: Tensor, grid: Grid, importance: Tensor, use: Use = _nothing) -> Scales:
    """Scales of least squared error, as `Grid.encode` takes them.

    Each of torch's threads looks at rows of its own: to share out ops as small as these takes longer than they do.

    Args:
        weight: (rows, columns) float32.
        importance: (columns,), what a squared error in a column counts.
        use: what those threads do with some rows once their scales are found, in a room as large as these rows, while
            they are in a cache.
    """
    in_blocks = isinstance(grid.granularity, PerBlock)
    size = grid.granularity.columns if isinstance(grid.granularity, PerBlock) else weight.shape[1]
    counts = importance.reshape(-1, size).contiguous()  # a diagonal's numbers lie far apart
    threads, own = torch.get_num_threads(), local()
    count = max(1, min(_ROWS // weight.shape[1], -(-len(weight) // threads)))

    def done(start: int) -> Scales:
        rows = slice(start, min(start + count, len(weight)))
        if not hasattr(own, "room"):
            own.room = torch.empty(min(count, len(weight)), weight.shape[1])
        room = own.room[: rows.stop - start]
        found = _least(weight[rows], room, grid, counts)
        scales = on_block_grid(found) if in_blocks else (found[:, 0], 0, None)
        use(rows, scales, room)
        return scales

    with OwnCores(threads, "clip") as pool:
        scale, _, multipliers = zip(*pool.map(done, range(0, len(weight), count)), strict=True)
    return torch.cat(scale), 0, torch.cat(multipliers) if in_blocks else None


def _least(rows: Tensor, room: Tensor, grid: Grid, counts: Tensor) -> Tensor:
    """Of some rows the scales of least error, (rows, blocks).

    Args:
        room: as large, to write to.
        counts: (blocks, columns of a block), what a squared error there counts.
    """
    some, room = (x.reshape(len(rows), *counts.shape) for x in (rows, room))
    largest = (torch.abs(some, out=room).amax(dim=2) / grid.top).clamp_min_(torch.finfo(torch.float32).tiny)

    def error(ratio: Tensor) -> Tensor:
        """Of each block at so much of its largest scale, (rows, blocks)."""
        scale = (largest * ratio)[..., None]
        torch.div(some, scale, out=room).round_().clamp_(grid.low, grid.top)
        return torch.addcmul(some, room, scale, value=-1, out=room).square_().mul_(counts).sum(dim=2)

    coarse, *steps = _OF_ROWS if len(counts) == 1 else _OF_BLOCKS
    least, first = torch.stack([error(ratio) for ratio in RATIOS[::coarse]]).min(dim=0)
    best = first * coarse
    for step in steps:
        for beside in (best - step, best + step):
            number = beside.clamp(0, len(RATIOS) - 1)
            found = error(RATIOS[number])
            best, least = torch.where(found < least, number, best), torch.minimum(found, least)
    return largest * RATIOS[best]
