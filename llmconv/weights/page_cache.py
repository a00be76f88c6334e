"""A checkpoint's files on their way from the disk into memory while something else is still done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

PIECE = 1 << 26  # bytes that the system is asked for at once; it may not answer before the disk has given them


@contextmanager
def coming(files: Sequence[Path], room: int) -> Iterator[None]:
    """Have the system read files into its page cache meanwhile, in order; where it takes no such advice, do nothing.

    Args:
        room: bytes; of what would not fit nothing is asked for.
    """
    over = Event()
    with ThreadPoolExecutor(1, "page-cache") as thread:
        asking = thread.submit(_ask, files, room, over)
        try:
            yield
        finally:
            over.set()
    asking.result()


def _ask(files: Sequence[Path], room: int, over: Event) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files:
        with suppress(OSError), file.open("rb") as stream:  # whoever needs the file says what is wrong with it
            size = min(room, file.stat().st_size)
            room -= size
            for start in range(0, size, PIECE):
                if over.is_set():
                    return
                os.posix_fadvise(stream.fileno(), start, min(PIECE, size - start), os.POSIX_FADV_WILLNEED)
