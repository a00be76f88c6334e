"""Whether scales that somebody else chose are those of a grid: one a row, or a row's times small integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmconv.encodings.grid import MULTIPLIERS, Grid, PerBlock, PerRow

if TYPE_CHECKING:  # as in grid.py
    import torch

BLOCKS = (128, 64, 32, 16)  # columns


def fitted(
    scales: torch.Tensor, columns: int, bits: int, tolerance: float
) -> tuple[Grid, torch.Tensor, torch.Tensor | None] | str:
    """The grid of symmetric integers whose scales these are, with its scales and multipliers; or why there is none.

    Args:
        scales: (rows, groups) float32, each of as many of a row's columns, side by side.
        columns: of a group.
        bits: of the integers; fewer than 4 lie on a grid of 4, fewer than 8 on one of 8.
        tolerance: by which a scale may differ, as a share of it: what its own type has rounded.
    """
    width = 4 if bits <= 4 else 8
    if not bool((scales > 0).all()):
        return "some scales are not above 0"
    if bool((scales == scales[:, :1]).all()):
        return Grid(width, PerRow()), scales[:, 0].clone(), None
    if width > 4:
        return "the scales of a row's groups differ, and only 4 bits have blocks"
    size = next((block for block in BLOCKS if columns % block == 0), 0)
    if not size:
        return f"groups of {columns} columns are no blocks of {', '.join(map(str, BLOCKS))}"
    found = _multiples(scales, tolerance)
    if found is None:
        return "the scales of a row's groups are not 1 to 16 times one number"
    scale, multipliers = found
    return Grid(4, PerBlock(size)), scale, multipliers.repeat_interleave(columns // size, dim=1)


def _multiples(scales: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A number for each row, (rows,), of which its scales are multiples, (rows, groups) uint8."""
    largest = scales.amax(dim=1)
    scale, multipliers, done = largest.clone(), scales.new_ones(scales.shape), scales.new_zeros(len(scales)).bool()
    for most in range(1, MULTIPLIERS + 1):
        trial = largest / most
        times = (scales / trial[:, None]).round().clamp(1, MULTIPLIERS)
        fits = ((scales - trial[:, None] * times).abs() <= tolerance * scales).all(dim=1) & ~done
        scale[fits], multipliers[fits] = trial[fits], times[fits]
        done |= fits
    return (scale, multipliers.to(scales.new_zeros(0).byte().dtype)) if bool(done.all()) else None
