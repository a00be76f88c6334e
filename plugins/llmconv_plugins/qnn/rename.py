"""Gives the graphs inside a context binary the names that Genie expects; QNN's execution provider has no option for it.

A name stands three times a graph: twice as a string with its u32 length before it, once at the end of a string
`PICKLE/<number>/<name>`, whose length counts the whole. The new name and its NULs take the old one's place, and the
lengths become the new ones.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmconv import BackendError

PLAIN, PICKLED = 2, 1  # places a graph
_PICKLE = re.compile(rb"PICKLE/\d+/$")


def rename_graphs(binary: Path, names: Mapping[str, str]) -> None:
    """Rename every graph of a context binary in place.

    Args:
        names: old name -> new name, of all graphs.

    Raises:
        BackendError: a name does not fit, or the file does not hold the names where they are expected; it is then
            unchanged.
    """
    if len(set(names.values())) != len(names):
        raise BackendError(f"{binary.name}: two graphs of one part want the same name: {sorted(names.values())}")
    with binary.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        edits = [edit for old, new in names.items() for edit in _edits(content, old, new, binary.name)]
        for start, data in edits:
            content[start : start + len(data)] = data
        content.flush()
        for old in names:
            if content.find(old.encode()) >= 0:
                raise BackendError(f"{binary.name}: the graph name '{old}' is still there after renaming")


def _edits(content: mmap.mmap, old: str, new: str, where: str) -> list[tuple[int, bytes]]:
    if not new.isascii() or not new or len(new) > len(old):
        raise BackendError(f"{where}: '{new}' cannot be a graph's name: it must be 1 to {len(old)} ASCII characters")
    before, after = old.encode(), new.encode()
    edits: list[tuple[int, bytes]] = []
    found = {PLAIN: 0, PICKLED: 0}
    for start in _occurrences(content, before):
        prefix = _PICKLE.search(content[max(start - 32, 0) : start])
        skipped = len(prefix[0]) if prefix else 0
        length_at = start - skipped - 4
        if length_at < 0 or _u32(content, length_at) != skipped + len(before) or content[start + len(before)]:
            raise BackendError(
                f"{where}: the graph name at byte {start} is not stored as this version of QNN stores it"
            )
        found[PICKLED if prefix else PLAIN] += 1
        edits.append((length_at, (skipped + len(after)).to_bytes(4, "little")))
        edits.append((start, after.ljust(len(before), b"\0")))
    if found != {PLAIN: PLAIN, PICKLED: PICKLED}:
        raise BackendError(
            f"{where}: the graph name '{old}' stands {found[PLAIN]} + {found[PICKLED]} times in the binary instead of "
            f"{PLAIN} + {PICKLED}; this version of onnxruntime-qnn is not supported"
        )
    return edits


def _occurrences(content: mmap.mmap, text: bytes) -> Iterator[int]:
    start = content.find(text)
    while start >= 0:
        yield start
        start = content.find(text, start + 1)


def _u32(content: mmap.mmap, at: int) -> int:
    return int.from_bytes(content[at : at + 4], "little")
