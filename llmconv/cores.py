"""The cores that torch computes on: many small ops gain more by runs at once than by sharing each op out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import torch

__all__ = ["OwnCores", "side_by_side", "threads_left"]


class OwnCores(ThreadPoolExecutor):
    """A pool of threads in each of which torch computes on so many cores, and in others as before.

    `torch.set_num_threads` decides for the thread that calls it, and for all that begin later.

    Args:
        threads: of the pool.
        name: that theirs begin with.
        cores: of each.
    """

    def __init__(self, threads: int, name: str, cores: int = 1) -> None:
        super().__init__(threads, name, torch.set_num_threads, (cores,))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of any pool; threads that begin later have as many as the caller again."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        torch.set_num_threads(torch.get_num_threads())


@contextmanager
def threads_left(others: int) -> Iterator[None]:
    """Have torch leave a core to each of so many others: threads that must wait for one take longer than fewer do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - others))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(first: Callable[[], None], second: Callable[[Event], None]) -> None:
    """Do both at once, each with half of torch's threads; where torch has but one, the first and then the second.

    Numbers are those of that many threads, on which the order of a sum in torch may depend.

    Args:
        first: runs in the caller's thread, which Ctrl-C interrupts.
        second: is given what is set once nobody needs it any more, since the first has failed or was interrupted.

    Raises:
        Exception: whatever one of them raises, once both have ended.
    """
    over = Event()
    threads = torch.get_num_threads()
    half = threads // 2
    if not half:
        first()
        second(over)
        return
    with threads_left(threads - half), OwnCores(1, "second", half) as pool:
        other = pool.submit(second, over)
        try:
            first()
        except BaseException:
            over.set()
            raise
        other.result()
