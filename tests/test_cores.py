"""Runs of torch at once share its threads, and leave them as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from llmconv.cores import OwnCores, side_by_side, threads_left

WAIT = 20  # seconds, far more than a thread takes to begin


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "others", "left"), [(8, 1, 7), (2, 1, 1), (1, 1, 1), (2, 5, 1)])
def test_others_are_left_a_core_each_and_torch_at_least_one(threads: int, others: int, left: int) -> None:
    torch.set_num_threads(threads)
    with threads_left(others):
        assert torch.get_num_threads() == left
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("threads", "each"), [(4, 2), (3, 1), (2, 1)])
def test_both_run_at_once_on_half_of_the_threads(threads: int, each: int) -> None:
    torch.set_num_threads(threads)
    met, seen = threading.Barrier(2), []

    def run(_over: object = None) -> None:
        met.wait(WAIT)  # raises where the other does not come
        seen.append(torch.get_num_threads())

    side_by_side(run, run)
    assert seen == [each, each]
    assert torch.get_num_threads() == threads


def test_threads_with_own_cores_leave_those_of_others_alone() -> None:
    torch.set_num_threads(2)

    def cores_of_another_thread() -> int:
        with ThreadPoolExecutor(1) as other:
            return other.submit(torch.get_num_threads).result()

    with OwnCores(1, "one") as one:
        assert one.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    assert cores_of_another_thread() == 2
    side_by_side(lambda: None, lambda _over: None)
    assert cores_of_another_thread() == 2


def test_one_thread_does_one_after_the_other() -> None:
    torch.set_num_threads(1)
    seen: list[str] = []
    side_by_side(lambda: seen.append("first"), lambda _over: seen.append("second"))
    assert seen == ["first", "second"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fails", [0, 1])
def test_what_one_raises_is_raised_and_the_threads_are_as_before(threads: int, fails: int) -> None:
    torch.set_num_threads(threads)

    def run(which: int) -> None:
        if which == fails:
            raise KeyError("value")

    with pytest.raises(KeyError):
        side_by_side(lambda: run(0), lambda _over: run(1))
    assert torch.get_num_threads() == threads


def test_the_second_is_told_that_the_first_was_interrupted() -> None:
    torch.set_num_threads(2)
    told: list[bool] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(interrupted, lambda over: told.append(over.wait(WAIT)))
    assert told == [True]
