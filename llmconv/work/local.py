"""Work on what this process holds, side by side in processes that are forked from it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from llmconv.errors import LlmconvError

T = TypeVar("T")

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_work: Callable[..., object]  # of a forked process


def in_processes(
    work: Callable[[T], object],
    items: Sequence[T],
    jobs: int | None,
    announce: Callable[[T], None] = lambda _item: None,
) -> None:
    """Call `work` on every item; what counts are the files that it writes, for its memory is a copy.

    Where the system cannot fork a process with threads (all but Linux), and for one job, this process does the work.

    Args:
        items: small; they go through a pipe.
        jobs: how many at once at most; None for as many as there are cores.
        announce: called with each item, in order, before it is done here or waited for.

    Raises:
        LlmconvError: a process was killed.
        Exception: whatever `work` raises.
    """
    count = min(jobs or os.cpu_count() or 1, len(items))
    if count < 2 or sys.platform != "linux":
        for item in items:
            announce(item)
            work(item)
        return
    with ProcessPoolExecutor(count, get_context("fork"), initializer=_begin, initargs=(work, os.getpid())) as pool:
        try:
            for item, result in [(item, pool.submit(_call, item)) for item in items]:
                announce(item)
                result.result()
        except BrokenProcessPool as error:
            raise LlmconvError("a process beside this one was killed; is memory short? pass --jobs 1") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(work: Callable[..., object], parent: int) -> None:
    """In a new process: it ends with its parent, leaves Ctrl-C to it, and has none of its threads."""
    global _work  # noqa: PLW0603  how a forked process knows what cannot be pickled
    _work = work
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it ended just before
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # OpenMP would wait for threads that a fork does not copy


def _call(item: object) -> None:
    _work(item)
