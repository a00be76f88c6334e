"""Round weights to the nearest integers of their grids, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import prod

import torch

from llmconv.bundle.part_file import WeightFile
from llmconv.encodings.grid import Block, Encoded
from llmconv.encodings.value import Encoding, WeightEncoding
from llmconv.weights.store import WeightStore

_BLOCK = 1 << 18  # elements of the rows that are quantized at once: small enough for a core's cache


def nearest(weight: torch.Tensor, how: WeightEncoding) -> Encoded:
    """A weight, or some rows of one whose encoding is not its own range, on its grid."""
    if not how.per_row:
        encoding = how.encoding or _range_of(weight, how.bits)
        return encoding.grid.encode(weight, torch.tensor([encoding.scale]), encoding.zero_point)
    flat, top = weight.reshape(weight.shape[0], -1), how.grid.top
    scale = (flat.abs().amax(dim=1) / top).clamp_min_(torch.finfo(torch.float32).tiny)  # aminmax is 3 times slower
    return how.grid.encode(weight, _clip(flat, scale, top) if how.clip else scale)


def _range_of(weight: torch.Tensor, bits: int) -> Encoding:
    low, high = torch.aminmax(weight)
    return Encoding.from_range(float(low), float(high), bits)


def _clip(flat: torch.Tensor, scale: torch.Tensor, top: int) -> torch.Tensor:
    """Per row, of 21 clipping ratios from 1.0 down to 0.6 the one with the least squared error."""
    best_scale, best_error = scale, torch.full_like(scale, float("inf"))
    for ratio in torch.linspace(1.0, 0.6, 21):
        trial = scale * ratio
        rounded = torch.clamp(torch.round(flat / trial[:, None]), -top - 1, top) * trial[:, None]
        error = (flat - rounded).square().sum(dim=1)
        better = error < best_error
        best_scale, best_error = torch.where(better, trial, best_scale), torch.where(better, error, best_error)
    return best_scale


def encoded_blocks(weight: torch.Tensor, how: WeightEncoding | None) -> Iterator[Block]:
    """A weight that has been read, as a part file takes it; None leaves it float."""
    if how is not None and not how.per_row and how.encoding is None:
        how = replace(how, encoding=_range_of(weight, how.bits))
    return _blocks(lambda rows: weight if rows is None else weight[rows], tuple(weight.shape), how)


def place(file: WeightFile, store: WeightStore, encodings: Mapping[str, WeightEncoding], name: str) -> None:
    """Read a weight some rows at a time and write it, unless it is written."""
    if name in file.placed:
        return
    how, shape = encodings.get(name), store.shape(name)
    if how is not None and not how.per_row and how.encoding is None:  # its range is that of all rows
        file.write(name, shape, encoded_blocks(store.read(name), how))
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
