"""Simulated schedules: small cases whose ends are known by hand."""

from __future__ import annotations

import pytest

from llmconv.backends import Stage
from llmconv.planning.schedule import Crew, schedule


def task(seconds: float, memory: int = 1, disk: int = 0) -> Stage:
    return Stage("compile", seconds, memory, disk, parallel=True)


ALONE = Stage("trace", 5.0, 1, 0)


@pytest.mark.parametrize(
    ("tasks", "crew", "ends"),
    [
        ([4, 3, 2], Crew(1), 9),
        ([4, 3, 2], Crew(2), 5),  # 4 beside 3 and then 2
        ([4, 3, 2], Crew(1, slots=2), 5),
        ([4, 3, 2], Crew(64), 4),  # the longest
        ([], Crew(2), 0),
    ],
)
def test_tasks_go_to_whoever_is_free(tasks: list[float], crew: Crew, ends: float) -> None:
    found = schedule([ALONE, *map(task, tasks)], crew)
    assert (found.serial, found.parallel, found.seconds) == (5, ends, 5 + ends)
    assert found.busy == sum(tasks)


@pytest.mark.parametrize(("memory", "ends"), [(6, 8), (9, 8), (12, 4), (None, 4)])
def test_two_tasks_share_a_worker_only_as_far_as_its_memory_goes(memory: int | None, ends: float) -> None:
    assert schedule([task(4, 6), task(4, 6)], Crew(1, slots=2, memory=memory)).parallel == ends


def test_a_task_larger_than_any_worker_has_one_for_itself() -> None:
    assert schedule([task(4, 100), task(3, 1)], Crew(1, slots=2, memory=8)).parallel == 7


def test_what_is_small_goes_before_what_waits_for_memory() -> None:
    assert schedule([task(4, 6), task(4, 6), task(2, 2)], Crew(1, slots=2, memory=8)).parallel == 8


def test_the_callers_link_sends_one_task_after_the_other() -> None:
    found = schedule([task(4, disk=10), task(4, disk=10), task(4, disk=10)], Crew(3, link=5))
    assert found.sending == 6
    assert found.parallel == 10  # the third is there after 6 s
