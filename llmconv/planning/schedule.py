"""When the stages of a plan end on so many workers: a simulation, task by task."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from llmconv.backends.backend import Stage


@dataclass(frozen=True)
class Crew:
    """Who does the stages that may run side by side.

    Attributes:
        workers: how many there are.
        slots: tasks that each does at once at most.
        memory: bytes that the tasks of one may take together; None for no bound. A task that needs more has all of it.
        link: bytes a second that the caller sends to all of them together; None where they see its files.
    """

    workers: int = 1
    slots: int = 1
    memory: int | None = None
    link: float | None = None


@dataclass(frozen=True)
class Schedule:
    """How a conversion passes.

    Attributes:
        serial: seconds of what the caller does alone.
        parallel: seconds from the first task's start to the last one's end.
        busy: seconds of all tasks together.
        longest: seconds of the longest task.
        sending: seconds in which the caller's link is busy.
    """

    serial: float
    parallel: float
    busy: float
    longest: float
    sending: float

    @property
    def seconds(self) -> float:
        """Of all."""
        return self.serial + self.parallel


def schedule(stages: Sequence[Stage], crew: Crew) -> Schedule:
    """Simulate: stages in order, those that may run at once begun as soon as a worker has a slot and memory for them.

    A task that does not fit anywhere lets those behind it go before, as Dask does.
    """
    tasks = [stage for stage in stages if stage.parallel]
    serial = sum(stage.seconds for stage in stages if not stage.parallel)
    free = [(crew.slots, crew.memory) for _ in range(crew.workers)]
    ends: list[tuple[float, int, int, int]] = []  # when, which task, where, bytes
    waiting, now, sent = list(enumerate(tasks)), 0.0, 0.0
    while waiting or ends:
        for i, task in list(waiting):
            need = task.memory if crew.memory is None else min(task.memory, crew.memory)
            at = next((w for w, (slots, left) in enumerate(free) if slots and (left is None or left >= need)), None)
            if at is None:
                continue
            waiting.remove((i, task))
            begins = now
            if crew.link is not None:
                sent = begins = max(sent, now) + task.disk / crew.link  # its weights, as large as what comes of them
            slots, left = free[at]
            free[at] = (slots - 1, None if left is None else left - need)
            heapq.heappush(ends, (begins + task.seconds, i, at, need))
        now, _, at, need = heapq.heappop(ends)
        slots, left = free[at]
        free[at] = (slots + 1, None if left is None else left + need)
    seconds = [task.seconds for task in tasks]
    sending = sum(task.disk for task in tasks) / crew.link if crew.link is not None else 0.0
    return Schedule(serial, now, sum(seconds), max(seconds, default=0.0), sending)
