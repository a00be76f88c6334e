"""Reads weights before they are asked for, in a thread beside the one that computes with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from types import TracebackType

import torch

from llmconv.cores import OwnCores
from llmconv.weights.store import WeightStore

DEPTH = 2  # weights in memory beside the one in use


class ReadAhead:
    """The weights of another store; used as a context manager.

    Args:
        order: names in the order in which they will be read, as far as it is known.
    """

    def __init__(self, store: WeightStore, order: Iterable[str]) -> None:
        self._store, self._order = store, deque(order)
        self._ahead: deque[tuple[str, Future[torch.Tensor]]] = deque()
        self._thread = OwnCores(1, "read-ahead")

    def __enter__(self) -> ReadAhead:
        self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._ahead.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self._store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight as float32; at once where it is the next of the order.

        One that is asked for later in the order has those before it dropped: the reader has gone on without them.
        """
        if rows is not None or not self._reach(name):
            return self._store.read(name, rows)
        _, future = self._ahead.popleft()
        weight = future.result()
        del future  # and with it what holds the weight
        self._fill()
        return weight

    def _reach(self, name: str) -> bool:
        """Make a name the first of those ahead; False where the order does not hold it, or no longer."""
        ahead = [name for name, _ in self._ahead]
        if name not in ahead and name not in self._order:
            return False
        while self._ahead and self._ahead[0][0] != name:
            self._ahead.popleft()[1].cancel()
        while not self._ahead:
            if self._order[0] == name:
                self._fill()
            else:
                self._order.popleft()
        return True

    def sha256(self, name: str) -> str | None:
        """As the store has it."""
        return self._store.sha256(name)

    def _fill(self) -> None:
        while len(self._ahead) < DEPTH and self._order:
            name = self._order.popleft()
            self._ahead.append((name, self._thread.submit(self._store.read, name)))
