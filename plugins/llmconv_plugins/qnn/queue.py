"""Compiles several parts at once, as many as cores and memory allow; the first failure stops the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from llmconv_plugins.qnn.compiler import CompileReport

Compile = Callable[[threading.Event], CompileReport]
Announce = Callable[[list[str]], None]


@dataclass(frozen=True)
class Task:
    """One part to compile.

    Attributes:
        memory: estimated peak, bytes.
        compile: does it, and ends early with an error when the event is set.
    """

    name: str
    memory: int
    compile: Compile


@dataclass
class _Budget:
    """Which tasks fit beside those that run; estimates grow or shrink with what finished tasks were measured at."""

    memory: int | None
    running: dict[Future[CompileReport], Task] = field(default_factory=dict)
    correction: float | None = None

    def allows(self, task: Task) -> bool:
        if not self.running or self.memory is None:
            return True
        return self._need(task) + sum(map(self._need, self.running.values())) <= self.memory

    def _need(self, task: Task) -> float:
        return task.memory * (self.correction or 1.0)

    def measured(self, task: Task, report: CompileReport) -> None:
        if report.peak_rss_bytes and task.memory:  # 0 where the system does not say
            self.correction = max(self.correction or 0.0, report.peak_rss_bytes / task.memory)


def compile_all(
    tasks: Sequence[Task], *, jobs: int, memory: int | None, announce: Announce = lambda _names: None
) -> list[CompileReport]:
    """Compile every task; reports are in the order of the tasks.

    Args:
        jobs: how many at once at most.
        memory: for all that run at once, bytes; None where unknown. One task runs whatever it needs.
        announce: called with the names of what runs, whenever that changes.

    Raises:
        BackendError: of the first task that failed; those that ran were stopped, the others never started.
    """
    stop, budget = threading.Event(), _Budget(memory)
    waiting, done = list(tasks), dict[str, CompileReport]()
    with ThreadPoolExecutor(max(1, jobs), "compile") as pool:
        try:
            while waiting or budget.running:
                while waiting and len(budget.running) < max(1, jobs) and budget.allows(waiting[0]):
                    task = waiting.pop(0)
                    budget.running[pool.submit(task.compile, stop)] = task
                announce([task.name for task in budget.running.values()])
                for future in wait(budget.running, return_when=FIRST_COMPLETED).done:
                    task = budget.running.pop(future)
                    done[task.name] = future.result()
                    budget.measured(task, done[task.name])
        except BaseException:  # also Ctrl-C: running children end before the pool is left
            stop.set()
            raise
    return [done[task.name] for task in tasks]
