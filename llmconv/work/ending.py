"""How a child process ends: with its parent, and by its parent's hand alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """In a child: have the kernel end it when the thread that started it ends, however it ends (Linux only).

    Ctrl-C reaches every process of a terminal; only the parent answers it.

    Args:
        parent: the process that started this one, which may have ended meanwhile.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
