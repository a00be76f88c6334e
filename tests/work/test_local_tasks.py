"""Tasks on this machine: in order, in bounds, and the first failure stops the rest."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from llmconv import BackendError
from llmconv.work import Local, Outcome, Task, Threads

PATIENCE = 10  # seconds that a test waits for a thread before it fails
MUCH = 1 << 40  # bytes


class Worker:
    """Stands for the work; notes what ran, and how many ran at once."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.most, self._running, self._lock = 0, 0, threading.Lock()

    def task(self, name: str, memory: int = 1, peak: int = 0, seconds: float = 0.05, fails: bool = False) -> Task:
        def call(_folder: Path, stop: threading.Event) -> Outcome:
            with self._lock:
                self.started.append(name)
                self._running += 1
                self.most = max(self.most, self._running)
            try:
                if fails:
                    raise BackendError(f"{name}: refused")
                if stop.wait(seconds):
                    self.stopped.append(name)
                    raise BackendError("stopped")
                return Outcome(name, peak)
            finally:
                with self._lock:
                    self._running -= 1

        return Task(name, memory, call)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def names(outcomes: list[Outcome]) -> list[str]:
    return [outcome.value for outcome in outcomes]


def test_outcomes_are_in_order_whatever_ends_first(worker: Worker) -> None:
    tasks = [worker.task(str(i), seconds=0.2 - 0.05 * i) for i in range(4)]
    assert names(Threads(4, MUCH).run(tasks)) == ["0", "1", "2", "3"]
    assert worker.most == 4


@pytest.mark.parametrize("jobs", [1, 2])
def test_jobs_bound_what_runs_at_once(worker: Worker, jobs: int) -> None:
    Threads(jobs, MUCH).run([worker.task(str(i)) for i in range(5)])
    assert worker.most == jobs


def test_memory_bounds_what_runs_at_once(worker: Worker) -> None:
    Threads(5, 100).run([worker.task(str(i), memory=40) for i in range(5)])
    assert worker.most == 2


def test_task_that_needs_more_than_there_is_runs_alone(worker: Worker) -> None:
    Threads(3, 100).run([worker.task(str(i), memory=500) for i in range(3)])
    assert worker.most == 1


def test_measured_memory_corrects_the_estimates(worker: Worker) -> None:
    light = [worker.task(str(i), memory=80, peak=20) for i in range(5)]
    Threads(8, 100).run(light)
    assert worker.most == 4  # after the first one, which ran alone
    heavy = Worker()
    Threads(8, 100).run([heavy.task(str(i), memory=40, peak=90) for i in range(5)])
    assert heavy.started == ["0", "1", "2", "3", "4"]
    assert heavy.most == 2  # before anything was measured


def test_first_failure_stops_what_runs_and_what_waits(worker: Worker) -> None:
    tasks = [worker.task("long", seconds=PATIENCE), worker.task("bad", fails=True), worker.task("waits")]
    began = time.monotonic()
    with pytest.raises(BackendError, match="bad: refused"):
        Threads(2, MUCH).run(tasks)
    assert time.monotonic() - began < PATIENCE
    assert sorted(worker.started) == ["bad", "long"]
    assert worker.stopped == ["long"]


def test_interrupt_stops_what_runs(worker: Worker) -> None:
    def interrupt(_names: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Threads(1, MUCH).run([worker.task("long", seconds=PATIENCE)], interrupt)
    assert worker.stopped == worker.started == ["long"]


def test_what_runs_is_announced(worker: Worker) -> None:
    said: list[list[str]] = []
    tasks = [worker.task("a", seconds=0.1), worker.task("b", seconds=0.3)]
    Threads(2, MUCH).run(tasks, said.append)
    assert said == [["a", "b"], ["b"]]


def test_what_ended_is_told_in_the_callers_thread(worker: Worker) -> None:
    told: list[tuple[str, str, int]] = []

    def done(task: Task, outcome: Outcome) -> None:
        told.append((task.name, outcome.value, threading.get_ident()))

    with Local().open(Path(), 1) as workers:
        workers.run([worker.task("a"), worker.task("b")], done=done)
    assert told == [(name, name, threading.get_ident()) for name in ("a", "b")]
