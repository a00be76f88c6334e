"""Parts compile side by side: in order, in bounds, and the first failure stops the rest."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmconv import BackendError
from llmconv.graph import Graph
from llmconv_plugins.backends import qnn_backend as qnn
from llmconv_plugins.qnn.child import Child
from llmconv_plugins.qnn.compiler import CompileReport
from llmconv_plugins.qnn.queue import Task, compile_all

PATIENCE = 10  # seconds that a test waits for a thread before it fails


class Compiler:
    """Stands for the compiler; notes what ran, and how many ran at once."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.most, self._running, self._lock = 0, 0, threading.Lock()

    def task(self, name: str, memory: int = 1, peak: int = 0, seconds: float = 0.05, fails: bool = False) -> Task:
        def compile_it(stop: threading.Event) -> CompileReport:
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
                return CompileReport(seconds, peak, 0, (), name)
            finally:
                with self._lock:
                    self._running -= 1

        return Task(name, memory, compile_it)


@pytest.fixture
def compiler() -> Compiler:
    return Compiler()


def names(reports: list[CompileReport]) -> list[str]:
    return [report.qnn_version for report in reports]


def test_reports_are_in_order_whatever_ends_first(compiler: Compiler) -> None:
    tasks = [compiler.task(str(i), seconds=0.2 - 0.05 * i) for i in range(4)]
    assert names(compile_all(tasks, jobs=4, memory=None)) == ["0", "1", "2", "3"]
    assert compiler.most == 4


@pytest.mark.parametrize("jobs", [1, 2])
def test_jobs_bound_what_runs_at_once(compiler: Compiler, jobs: int) -> None:
    compile_all([compiler.task(str(i)) for i in range(5)], jobs=jobs, memory=None)
    assert compiler.most == jobs


def test_memory_bounds_what_runs_at_once(compiler: Compiler) -> None:
    compile_all([compiler.task(str(i), memory=40) for i in range(5)], jobs=5, memory=100)
    assert compiler.most == 2


def test_part_that_needs_more_than_there_is_runs_alone(compiler: Compiler) -> None:
    compile_all([compiler.task(str(i), memory=500) for i in range(3)], jobs=3, memory=100)
    assert compiler.most == 1


def test_measured_memory_corrects_the_estimates(compiler: Compiler) -> None:
    light = [compiler.task(str(i), memory=80, peak=20) for i in range(5)]
    compile_all(light, jobs=8, memory=100)
    assert compiler.most == 4  # after the first one, which ran alone
    heavy = Compiler()
    compile_all([heavy.task(str(i), memory=40, peak=90) for i in range(5)], jobs=8, memory=100)
    assert heavy.started == ["0", "1", "2", "3", "4"]
    assert heavy.most == 2  # before anything was measured


def test_first_failure_stops_what_runs_and_what_waits(compiler: Compiler) -> None:
    tasks = [compiler.task("long", seconds=PATIENCE), compiler.task("bad", fails=True), compiler.task("waits")]
    began = time.monotonic()
    with pytest.raises(BackendError, match="bad: refused"):
        compile_all(tasks, jobs=2, memory=None)
    assert time.monotonic() - began < PATIENCE
    assert sorted(compiler.started) == ["bad", "long"]
    assert compiler.stopped == ["long"]


def test_interrupt_stops_what_runs(compiler: Compiler) -> None:
    def interrupt(_names: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_all([compiler.task("long", seconds=PATIENCE)], jobs=1, memory=None, announce=interrupt)
    assert compiler.stopped == compiler.started == ["long"]


def test_what_runs_is_announced(compiler: Compiler) -> None:
    said: list[list[str]] = []
    tasks = [compiler.task("a", seconds=0.1), compiler.task("b", seconds=0.3)]
    compile_all(tasks, jobs=2, memory=None, announce=said.append)
    assert said == [["a", "b"], ["b"]]


def test_child_is_killed_when_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleeper.py").write_text(f"import time\ntime.sleep({PATIENCE})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with (
        pytest.raises(BackendError, match="stopped"),
        Child("sleeper", [], log=tmp_path / "log", cwd=tmp_path) as child,
    ):
        child.finish(stop)
    assert time.monotonic() - began < PATIENCE / 2
    assert child.process.poll() is not None


def test_childs_peak_memory_is_its_own(tmp_path: Path) -> None:
    held = bytearray(300_000_000)  # by this process, when it starts the child
    script = "from llmconv.work import peak_memory\nprint(peak_memory())"
    (tmp_path / "measured.py").write_text(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with Child("measured", [], log=tmp_path / "log", cwd=tmp_path) as child:
            peak = int(child.finish())
    if sys.platform == "linux":
        assert 10**6 < peak < len(held)


Refuse = Callable[[str], str]


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("needs 2,347,229 KB > 2,097,152 KB", "; set graphs.prompt.ar = 512, or a higher passes.split_model.parts"),
        (
            "was killed (SIGKILL; is memory short?)",
            "; pass --jobs 1, set a higher passes.split_model.parts, or add swap",
        ),
        ("QNN cannot run Acosh", ""),
    ],
)
def test_failure_for_want_of_memory_names_the_setting(message: str, remedy: str) -> None:
    graphs = [Graph("prompt", 1024, 1024, []), Graph("token", 1, 1024, [])]
    found = qnn._remedy(message, graphs)
    assert found.startswith(remedy)
    assert bool(found) == bool(remedy)
