"""A piece of work that names files and options and never what a process holds, so that another process can do it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a piece of work says of itself; what it made are files.

    Attributes:
        value: small; it may come from another machine.
        peak_memory: bytes that it took at its peak, measured; 0 where the system does not say.
    """

    value: Any
    peak_memory: int = 0


@dataclass(frozen=True)
class Task:
    """One piece.

    Attributes:
        name: for people.
        memory: estimated peak, bytes.
        call: does it in a folder, and ends early with an error when the event is set; a module's function, or a
            `partial` of one, so that it can be sent. Doing it twice, also at the same time, makes the same files.
        folder: the caller's, where its files lie.
        reads: the files that it looks at, relative to a folder, with `/` between.
        makes: the files that it leaves there, likewise.
    """

    name: str
    memory: int
    call: Callable[[Path, threading.Event], Outcome]
    folder: Path = Path()
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()

    def run(self, stop: threading.Event) -> Outcome:
        """Do it where its files lie."""
        return self.call(self.folder, stop)
