"""Tasks on this machine, as many at once as cores and memory allow."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from llmconv.work.executor import Announce, Done, Executor, Workers
from llmconv.work.machine import memory_at_hand
from llmconv.work.task import Outcome, Task


@dataclass(frozen=True)
class Local(Executor):
    """Tasks on this machine, in threads: what is heavy of them runs in processes that they start."""

    name: ClassVar[str] = "local"

    @contextmanager
    def open(self, folder: Path, jobs: int | None) -> Iterator[Workers]:
        """Threads of this process."""
        yield Threads(jobs)


@dataclass
class _Budget:
    """Which tasks fit beside those that run; estimates grow or shrink with what finished tasks were measured at."""

    memory: int
    running: dict[Future[Outcome], Task] = field(default_factory=dict)
    correction: float | None = None

    def allows(self, task: Task) -> bool:
        if not self.running:
            return True
        return self._need(task) + sum(map(self._need, self.running.values())) <= self.memory

    def _need(self, task: Task) -> float:
        return task.memory * (self.correction or 1.0)

    def measured(self, task: Task, outcome: Outcome) -> None:
        if outcome.peak_memory and task.memory:
            self.correction = max(self.correction or 0.0, outcome.peak_memory / task.memory)


class Threads(Workers):
    """Threads of this process.

    Args:
        jobs: how many tasks at once at most; None for as many as there are cores.
        memory: for all that run at once, bytes; None for what is at hand. One task runs whatever it needs.
    """

    def __init__(self, jobs: int | None = None, memory: int | None = None) -> None:
        self._jobs, self._memory = jobs or os.cpu_count() or 1, memory

    def run(
        self,
        tasks: Sequence[Task],
        announce: Announce = lambda _names: None,
        done: Done = lambda _task, _outcome: None,
    ) -> list[Outcome]:
        """As of `Workers`."""
        stop, budget = threading.Event(), _Budget(memory_at_hand() if self._memory is None else self._memory)
        waiting, outcomes = list(tasks), dict[int, Outcome]()
        with ThreadPoolExecutor(self._jobs, "task") as pool:
            try:
                while waiting or budget.running:
                    while waiting and len(budget.running) < self._jobs and budget.allows(waiting[0]):
                        task = waiting.pop(0)
                        budget.running[pool.submit(task.run, stop)] = task
                    announce([task.name for task in budget.running.values()])
                    for future in wait(budget.running, return_when=FIRST_COMPLETED).done:
                        task = budget.running.pop(future)
                        outcomes[id(task)] = outcome = future.result()
                        budget.measured(task, outcome)
                        done(task, outcome)
            except BaseException:  # also Ctrl-C: what runs ends before the pool is left
                stop.set()
                raise
        return [outcomes[id(task)] for task in tasks]
