"""Weights that are read when asked and never held: one tensor, or a row range of it, at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from llmconv.errors import PassError
from llmconv.weights.coded import Coded, coded_of
from llmconv.weights.hashing import hash_ahead


class WeightStore(Protocol):
    """Reads weights by the name that the traced module gives them."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, without reading it."""
        ...

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32."""
        ...

    def sha256(self, name: str) -> str | None:
        """Of the checkpoint's bytes of a weight that has been read whole; None of others.

        Out of the same read, or of one before it, if the file has not been written to since.
        """
        ...


@runtime_checkable
class IntegerStore(Protocol):
    """A store over files whose tensors may be integers, which stand for weights by a rule of the files' format."""

    def __contains__(self, name: str) -> bool: ...

    def stored(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or a range of its rows, in the type that the file has."""
        ...


class Checkpoint(WeightStore, Protocol):
    """A store over a checkpoint's files, which knows what lies in them."""

    def __contains__(self, name: str) -> bool: ...


@dataclass
class DictStore:
    """Weights that lie in memory: small modules in tests and in the testing helper."""

    tensors: Mapping[str, torch.Tensor]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return tuple(self.tensors[name].shape)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32."""
        tensor = self.tensors[name].detach().to(torch.float32)
        return tensor if rows is None else tensor[rows]

    def sha256(self, name: str) -> str | None:
        """None: no checkpoint has these bytes."""
        return None


@dataclass(frozen=True)
class StoreUnion:
    """Several stores as one; a weight is called `<store>/<its name there>`.

    Attributes:
        rest: has the weights whose names begin with none of the stores.
    """

    stores: Mapping[str, Checkpoint]
    rest: Checkpoint | None = None

    def __contains__(self, name: str) -> bool:
        store, own = self._find(name)
        return own in store

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        store, own = self._find(name)
        return store.shape(own)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32."""
        store, own = self._find(name)
        return store.read(own, rows)

    def sha256(self, name: str) -> str | None:
        """As the weight's own store has it."""
        store, own = self._find(name)
        return store.sha256(own)

    def hash_ahead(self, room: int, over: Event) -> int:
        """As of `HashingStore`, one store after the other."""
        for store in (*self.stores.values(), self.rest):
            room = hash_ahead(store, room, over)
        return room

    def coded(self, name: str) -> Coded | str | None:
        """As the weight's own store has it."""
        return coded_of(*self._find(name))

    def _find(self, name: str) -> tuple[Checkpoint, str]:
        store, _, own = name.partition("/")
        return (self.rest, name) if self.rest is not None and store not in self.stores else (self.stores[store], own)


def look_up(store: WeightStore, name: str, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a weight by their numbers, (…) to (…, columns) float32; no others are read."""
    asked = ids.flatten().tolist()
    rows = {i: store.read(name, slice(i, i + 1)) for i in dict.fromkeys(asked)}
    return torch.cat([rows[i] for i in asked]).reshape(*ids.shape, -1)


class ShapeStore:
    """The shapes of a module's parameters; reading one is an error."""

    def __init__(self, module: nn.Module) -> None:
        self._shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self._shapes[name]

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """There is nothing to read.

        Raises:
            PassError: always.
        """
        raise PassError(f"weight '{name}' is read, but a plan is made from shapes alone")

    def sha256(self, name: str) -> str | None:
        """None: nothing is read."""
        return None
