"""The heap of this process: memory that was freed, and that the C library keeps."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Return what is free, also between what is held, to the system, where glibc runs; it takes milliseconds."""
    found = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if found is not None:
        found(0)
