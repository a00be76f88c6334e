"""What was sent to AI Hub, on disk before it is sent and as soon as its id is known.

An entry is known by its key: a hash of the content that is sent and of every option. Its name on the service holds the
key, so that an entry without an id (the process was killed between the two) can be looked up there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from llmconv.files import write_json

NAME = "ai_hub"  # of the ledger among an output folder's
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


_ENTRIES = TypeAdapter(list[Entry])


class Ledger:
    """The entries of one output folder; its methods are called from many threads.

    Args:
        file: holds them, as of `Steps.ledger`; without it they live in memory. One that is damaged holds none.
    """

    def __init__(self, file: Path | None) -> None:
        self._file, self._lock = file, threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._asked: set[str] = set()  # slots
        if file is not None:
            with contextlib.suppress(OSError, ValueError):
                self._entries = {entry.slot: entry for entry in _ENTRIES.validate_json(file.read_bytes())}

    @property
    def entries(self) -> list[Entry]:
        """All of them, by slot."""
        return [entry for _, entry in sorted(self._entries.items())]

    def entry(self, slot: str, key: str) -> Entry | None:
        """What was sent under that key, or None; what was sent for the slot under another key is forgotten."""
        with self._lock:
            self._asked.add(slot)
            held = self._entries.get(slot)
            if held is not None and held.key != key:
                del self._entries[slot]
                self._write()
            return self._entries.get(slot)

    def begin(self, slot: str, key: str) -> Entry:
        """Write down that something is about to be sent."""
        return self._put(Entry(slot, key, f"llmconv {slot} {key[:KEY_DIGITS]}", time.time()))

    def update(self, entry: Entry, **changes: Any) -> Entry:
        """Write down what has become known."""
        return self._put(replace(entry, **changes))

    def drop(self, entry: Entry) -> None:
        """Forget an entry: it will be sent again."""
        with self._lock:
            self._entries.pop(entry.slot, None)
            self._write()

    def drop_unasked(self) -> None:
        """Forget the entries that this run did not ask for."""
        with self._lock:
            self._entries = {slot: entry for slot, entry in self._entries.items() if slot in self._asked}
            self._write()

    def _put(self, entry: Entry) -> Entry:
        with self._lock:
            self._entries[entry.slot] = entry
            self._asked.add(entry.slot)
            self._write()
        return entry

    def _write(self) -> None:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, [asdict(entry) for entry in self.entries])
