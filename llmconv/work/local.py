"""Work on what this process holds, side by side in processes that are forked from it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from llmconv.errors import LlmconvError
from llmconv.work.ending import end_with_parent

T = TypeVar("T")

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
    context = _Fork()
    with ProcessPoolExecutor(count, context, initializer=_begin, initargs=(work, os.getpid())) as pool:
        try:
            for item, result in [(item, pool.submit(_call, item)) for item in items]:
                announce(item)
                result.result()
        except BrokenProcessPool as error:
            raise LlmconvError("a process beside this one was killed; is memory short? pass --jobs 1") from error
        except BaseException:  # also Ctrl-C
            context.kill()  # else the pool would wait until they have done all that is in its queue
            raise


@contextmanager
def beside(work: Callable[[], T]) -> Iterator[Future[T] | None]:
    """Do one thing in a forked process, for as long as the block lasts; None where the system cannot.

    Args:
        work: what it returns goes through a pipe.
    """
    if sys.platform != "linux":
        yield None
        return
    context = _Fork()
    with ProcessPoolExecutor(1, context, initializer=_begin, initargs=(work, os.getpid())) as pool:
        found = pool.submit(_call_alone)
        pool.shutdown(wait=False)  # so that the process ends, and its memory is free, once that is done
        try:
            yield found
        finally:
            context.kill()


if sys.platform == "linux":
    from multiprocessing.context import ForkContext, ForkProcess

    class _Fork(ForkContext):
        """Forks processes, and knows them."""

        def __init__(self) -> None:
            self._started: list[ForkProcess] = []

        def Process(self, *args: Any, **kwargs: Any) -> ForkProcess:  # type: ignore[override]  # noqa: N802  inherited
            self._started.append(super().Process(*args, **kwargs))
            return self._started[-1]

        def kill(self) -> None:
            """End them all, whatever they do; the pool that they are of then ends, too."""
            for process in self._started:
                process.kill()


def _begin(work: Callable[..., object], parent: int) -> None:
    """In a new process: it ends with its parent, leaves Ctrl-C to it, and has none of its threads."""
    global _work  # noqa: PLW0603  how a forked process knows what cannot be pickled
    _work = work
    gc.freeze()  # the parent's garbage stays: such as a session of ONNX Runtime, whose end waits for its threads
    end_with_parent(parent)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # OpenMP would wait for threads that a fork does not copy


def _call(item: object) -> None:
    _work(item)


def _call_alone() -> Any:
    return _work()
