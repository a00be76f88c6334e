"""A heavy piece of work that any process can do: it names files and options, never graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
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
        call: does it, and ends early with an error when the event is set; a module's function, or a `partial` of one,
            so that it can be sent. Doing it twice, also at the same time, makes the same files.
    """

    name: str
    memory: int
    call: Callable[[threading.Event], Outcome]
