"""How soon a thread that has to compute gets the interpreter from another that runs Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llmconv.work.process_change import ProcessChange, Undo, nothing

SOON = 5e-4  # seconds; Python's own 5e-3 is as long as to round half a million weights


def _hasten() -> Undo:
    before = sys.getswitchinterval()
    if before <= SOON:
        return nothing
    sys.setswitchinterval(SOON)
    hastened = sys.getswitchinterval()

    def undo() -> None:
        if sys.getswitchinterval() == hastened:  # else the program has chosen another meanwhile
            sys.setswitchinterval(before)

    return undo


_hastened = ProcessChange(_hasten)


@contextmanager
def threads_switched_soon() -> Iterator[None]:
    """Have threads wait less for the interpreter.

    For weights that are read and rounded in threads beside the one that runs samples through graphs: they come in
    pieces, of which each asks for the interpreter several times.
    """
    with _hastened():
        yield
