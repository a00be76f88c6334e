"""Weights that stay in memory once they are read, as far as a number of bytes allows."""

from __future__ import annotations

import torch

from llmconv.heap import trim
from llmconv.weights.store import WeightStore

HELD = 3 << 28  # bytes that stay in memory by default: a model of 200 million parameters
TRIMMED = 1 << 26  # bytes that are held before what was computed on the way, and lies between them, is given back


class HeldStore:
    """Another store's weights, the first ones read held in memory; what goes beyond the limit is read again each time.

    Args:
        limit: bytes.
    """

    def __init__(self, store: WeightStore, limit: int = HELD) -> None:
        self.store, self._room, self._untrimmed = store, limit, 0
        self._held: dict[str, torch.Tensor] = {}
        self._places: set[int] = set()  # of what is held, in memory

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32; it is shared, so it must not be changed."""
        if name in self._held:
            return self._held[name] if rows is None else self._held[name][rows]
        weight = self.store.read(name, rows)
        if rows is None and weight.nbytes <= self._room:
            self._room -= weight.nbytes
            self._held[name] = weight
            self._places.add(weight.untyped_storage().data_ptr())
            self._untrimmed += weight.nbytes
            if self._untrimmed > TRIMMED:
                self._untrimmed = 0
                trim()
        return weight

    def holds(self, value: torch.Tensor) -> bool:
        """Whether a value lies in a weight that is held, so that keeping it takes no memory."""
        return value.untyped_storage().data_ptr() in self._places

    def sha256(self, name: str) -> str | None:
        """As the store has it."""
        return self.store.sha256(name)
