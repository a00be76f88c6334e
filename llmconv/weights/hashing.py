"""Hashes of a checkpoint's tensors, taken while the processor has a core to spare and nobody reads them yet."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Protocol, runtime_checkable


@runtime_checkable
class HashingStore(Protocol):
    """A store that can hash what it has not read yet."""

    def hash_ahead(self, room: int, over: Event) -> int:
        """Hash tensors until a weight is read, a number of bytes is done, or nobody needs it any more.

        What `read` gives has the same hash then only if its file has not changed meanwhile; else it is hashed anew.

        Args:
            room: bytes that the system can keep, so that reading them again takes no disk.

        Returns:
            How much of the room is left, bytes.
        """
        ...


@contextmanager
def hashed_ahead(store: object, room: int) -> Iterator[None]:
    """Hash what a store can hash while something else is done; arguments as of `HashingStore.hash_ahead`."""
    over = Event()
    with ThreadPoolExecutor(1, "hash-ahead") as thread:
        hashing = thread.submit(hash_ahead, store, room, over)
        try:
            yield
        finally:
            over.set()
    hashing.result()


def hash_ahead(store: object, room: int, over: Event) -> int:
    """As of `HashingStore.hash_ahead`, of any store."""
    return store.hash_ahead(room, over) if isinstance(store, HashingStore) else room
