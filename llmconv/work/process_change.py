"""Changes to the whole process, such as how its garbage collector works, which are made once for all who need them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Undo = Callable[[], None]


def nothing() -> None:
    """What undoes no change."""


class ProcessChange:
    """A change to the process that begins with the first block that asks for it, in any thread, and ends with the last.

    Args:
        change: makes it, and returns what undoes it.
    """

    def __init__(self, change: Callable[[], Undo]) -> None:
        self._lock = threading.Lock()
        self._change, self._blocks, self._undo = change, 0, nothing

    @property
    def active(self) -> bool:
        """Whether a block is open."""
        return self._blocks > 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._blocks:
                self._undo = self._change()
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    self._undo()
