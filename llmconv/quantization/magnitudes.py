"""How large the numbers of a value are, and where the range of a grid with few steps should end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import ceil, log2
from typing import Any, Literal

import torch
from torch import Tensor, fx

from llmconv.graph.model import name_of

RangeRule = Literal["min-max", "percentile", "mse"]

BINS = 1024
PERCENTILE = 0.9999  # of the numbers are within the range
RATIOS = torch.linspace(1.0, 0.3, 141)  # of the largest number, at which a range may end
_SMALLEST = 2.0**-100


class Magnitudes:
    """Histograms of absolute values; a number beyond the last bin doubles the width of all.

    Args:
        names: of the values that are looked at.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = frozenset(names)
        self._found: dict[str, tuple[float, Tensor]] = {}  # end of the last bin, and counts

    @property
    def names(self) -> list[str]:
        """Of the values that are looked at."""
        return sorted(self._names)

    def observe(self, node: fx.Node, value: Tensor) -> None:
        """Count the numbers of a value, if it is one of those."""
        if (name := name_of(node)) in self._names:
            self.add(name, value)

    def add(self, name: str, value: Tensor) -> None:
        """Count some numbers."""
        sizes = value.abs()
        top = 2.0 ** ceil(log2(max(float(sizes.max()), _SMALLEST)))
        known = self._found.get(name)
        if known is not None:
            top = max(top, known[0])
        counts = torch.histc(sizes, BINS, 0, top).long()
        self._found[name] = top, counts if known is None else counts + _widened(*known, top)

    def end(self, names: Iterable[str], largest: float, bits: int, rule: RangeRule) -> float:
        """Where a symmetric range of values that share it ends.

        Args:
            largest: absolute value, which no range exceeds.
        """
        found = [self._found[name] for name in names if name in self._found]
        if rule == "min-max" or not found or largest <= 0:
            return largest
        top = max(end for end, _ in found)
        counts = torch.stack([_widened(end, c, top) for end, c in found]).sum(dim=0).double()
        centers = (torch.arange(BINS, dtype=torch.float64) + 0.5) * top / BINS
        if rule == "percentile":
            within = int(torch.searchsorted(counts.cumsum(0), PERCENTILE * counts.sum()))
            return min(largest, (within + 1) * top / BINS)
        ends = RATIOS.double() * largest
        steps = ends / (2 ** (bits - 1) - 1)
        beyond = (centers - ends[:, None]).clamp_min(0).square() @ counts
        to_zero = centers < steps[:, None] / 2
        rounded = torch.where(to_zero, centers.square(), steps[:, None].square() / 12)
        inside = (rounded * (centers <= ends[:, None])) @ counts
        return float(ends[int((beyond + inside).argmin())])

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for another run."""
        return {name: [top, counts.tolist()] for name, (top, counts) in self._found.items()}

    def update(self, found: Mapping[str, Any]) -> None:
        """Take over what `to_dict` gave."""
        self._found |= {name: (float(top), torch.tensor(counts)) for name, (top, counts) in found.items()}


def _widened(end: float, counts: Tensor, top: float) -> Tensor:
    while end < top:
        counts = torch.cat([counts.reshape(-1, 2).sum(dim=1), torch.zeros(BINS // 2, dtype=counts.dtype)])
        end *= 2
    return counts
