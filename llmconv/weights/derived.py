"""A store whose weights are expressions over those of another: a source's table of a checkpoint, a pass's on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from llmconv.weights.coded import Coded, coded_of
from llmconv.weights.expressions import Expression
from llmconv.weights.hashing import hash_ahead
from llmconv.weights.store import Checkpoint, WeightStore


@dataclass(frozen=True)
class Derived:
    """The weights of a table; those that it does not name are the other store's, as they are.

    An expression reads the other store alone: `{"w": Affine(Stored("w"), 2.0)}` is twice what `w` was.
    """

    store: WeightStore
    table: Mapping[str, Expression]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self.table[name].shape(self.store) if name in self.table else self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A weight, or a range of its rows, as float32."""
        if name not in self.table:
            return self.store.read(name, rows)
        shape = self.shape(name)
        start, stop, _ = (rows or slice(None)).indices(shape[0] if shape else 1)
        if start >= stop:
            return torch.empty(0, *shape[1:])
        return self.table[name].rows(self.store, start, stop)

    def coded(self, name: str) -> Coded | str | None:
        """As of `CodedStore`."""
        return self.table[name].coded(self.store) if name in self.table else coded_of(self.store, name)

    def sha256(self, name: str) -> str | None:
        """Of the tensors that a weight is made of, one after the other; None where one was not read whole."""
        if name not in self.table:
            return self.store.sha256(name)
        found = [self.store.sha256(stored) for stored in self.table[name].stored()]
        return " ".join(map(str, found)) if found and None not in found else None

    def hash_ahead(self, room: int, over: Event) -> int:
        """As of `HashingStore`."""
        return hash_ahead(self.store, room, over)


@dataclass(frozen=True)
class DerivedCheckpoint(Derived):
    """A checkpoint some of whose tensors are made of others: an adapter merged, integers as the numbers they stand for.

    Tensors keep their names, so that whatever knows a checkpoint's names reads this one as well.
    """

    store: Checkpoint

    def __contains__(self, name: str) -> bool:
        return name in self.table or name in self.store


def tables_of(store: WeightStore) -> list[dict[str, str]]:
    """What makes these weights of the first store's, the last table first, as JSON: part of a step's key."""
    if not isinstance(store, Derived):
        return []
    return [{name: str(expression) for name, expression in store.table.items()}, *tables_of(store.store)]
