"""What was sent to AI Hub, on disk before it is sent and as soon as its id is known.

An entry is known by its key: a hash of the content that is sent and of every option. Its name on the service holds the
key, so that an entry without an id (the process was killed between the two) can be looked up there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmconv.work import Steps

PREFIX = "ai_hub/"
KEY_DIGITS = 16  # of 64; 2^64 names


@dataclass(frozen=True)
class Entry:
    """An upload or a job.

    Attributes:
        slot: what it is for, such as "compile prompt_ar32_cl128_1_of_2".
        name: on the service; no other entry has it.
        since: when it was first sent, seconds since 1970.
        id: of the model or job; empty until it is known.
        complete: whether the upload is whole, or the job is done.
        target: id of the model that the job made.
        seconds: that the job ran.
    """

    slot: str
    key: str
    name: str
    since: float
    id: str = ""
    complete: bool = False
    target: str = ""
    seconds: float = 0.0


class Ledger:
    """The entries of one output folder.

    Args:
        steps: keeps them; without it they live in memory.
    """

    def __init__(self, steps: Steps | None) -> None:
        self._steps = steps
        self._held: dict[str, Entry] = {}

    def entry(self, slot: str, key: str) -> Entry | None:
        """What was sent under that key, or None; what was sent for the slot under another key is forgotten."""
        if self._steps is None:
            held = self._held.get(slot)
            return held if held is not None and held.key == key else None
        value = self._steps.finished(PREFIX + slot, key)
        return Entry(**value) if value else None

    def begin(self, slot: str, key: str) -> Entry:
        """Write down that something is about to be sent."""
        return self._write(Entry(slot, key, f"llmconv {slot} {key[:KEY_DIGITS]}", time.time()))

    def update(self, entry: Entry, **changes: Any) -> Entry:
        """Write down what has become known."""
        return self._write(replace(entry, **changes))

    def drop(self, entry: Entry) -> None:
        """Forget an entry: it will be sent again."""
        self._held.pop(entry.slot, None)
        if self._steps is not None:
            self._steps.forget(PREFIX + entry.slot)

    def _write(self, entry: Entry) -> Entry:
        if self._steps is None:
            self._held[entry.slot] = entry
        else:
            self._steps.finish(PREFIX + entry.slot, entry.key, [], asdict(entry))
        return entry


def entries_of(values: Mapping[str, Any]) -> list[Entry]:
    """The entries among the values of an output folder's steps."""
    return [Entry(**value) for name, value in sorted(values.items()) if name.startswith(PREFIX)]
