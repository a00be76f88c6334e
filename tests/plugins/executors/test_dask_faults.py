"""Conversions on Dask of which something is killed, lost, late or full: one line, and the same bytes in the end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from converting import apply_bounded
from dask_tasks import PATIENCE, say, wait

from llmconv.errors import BackendError
from llmconv.files import digest
from llmconv.work import Task, environment
from llmconv_plugins.executors.dask_executor import MEMORY, Dask

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
CLIENT = """
import sys, threading
from functools import partial
from pathlib import Path
import dask_tasks as tasks
from llmconv.work import Task
from llmconv_plugins.executors.dask_executor import Dask
with Dask(sys.argv[1]).open(Path(sys.argv[2]), None) as workers:
    call = partial(tasks.wait, Path(sys.argv[2]).parent)
    workers.run([Task("waits", 1, call, Path(sys.argv[2]), (), ("made",))])
"""


@pytest.fixture
def address() -> Iterator[str]:
    """Of a scheduler with one worker, a process."""
    options = {"threads_per_worker": 1, "resources": {MEMORY: 100}, "memory_limit": None, "dashboard_address": ":0"}
    with distributed.LocalCluster(n_workers=1, **options) as cluster:
        yield cluster.scheduler_address


def there(file: Path) -> bool:
    until = time.monotonic() + PATIENCE
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.1)
    return file.exists()


def test_a_task_whose_caller_was_killed_stops_and_leaves_nothing(address: str, tmp_path: Path) -> None:
    """Else it would put an old file into the place of the one that the next run has made there."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", CLIENT, address, str(folder)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as client:
        assert there(tmp_path / "waits")
        client.send_signal(signal.SIGKILL)
    assert there(tmp_path / "stopped")
    assert list(folder.iterdir()) == []
    with Dask(address).open(folder, None):  # the next run removes the place that was left
        pass
    assert not (tmp_path / ".bundle.tasks").exists()


def test_what_a_worker_logs_is_in_the_callers_log(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Dask(address).open(tmp_path, None) as workers, caplog.at_level(logging.WARNING):
        (outcome,) = workers.run([Task("says", 1, say, tmp_path)])
        assert outcome.value != os.getpid()
        until = time.monotonic() + PATIENCE
        while "the table is tied" not in caplog.text and time.monotonic() < until:
            time.sleep(0.1)
    assert "the table is tied" in caplog.text


def test_a_worker_of_other_versions_that_comes_later_does_nothing(address: str, tmp_path: Path) -> None:
    with Dask(address).open(tmp_path, None) as workers:
        workers._here = {**environment(), "onnx": "of the caller"}  # type: ignore[attr-defined]  and not of the worker
        with pytest.raises(BackendError, match=r"differs: onnx is [\d.]+ there and of the caller here; install the"):
            workers.run([Task("waits", 1, partial(wait, tmp_path), tmp_path)])
    assert not (tmp_path / "waits").exists()


def test_kills_of_workers_scheduler_and_client_change_no_byte(small_recipe: Path, tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "kill.py"
    command = [sys.executable, str(script), str(small_recipe), str(tmp_path / "k"), "--kills", "5", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same 2" in done.stdout.splitlines()[-1]  # some twenty files
    assert sum(" after the client began" in line for line in done.stdout.splitlines()) == 5


def test_a_disk_that_is_full_while_parts_compile(small_recipe: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert run(small_recipe, whole).returncode == 0
    sizes = {folder: max(f.stat().st_size for f in (whole / folder).iterdir()) for folder in ("onnx", "qnn")}
    limit = (sizes["onnx"] + sizes["qnn"]) // 2
    assert sizes["onnx"] < limit < sizes["qnn"]  # so that it is a binary which does not fit
    stopped = run(small_recipe, output, limit)
    assert stopped.returncode == 2
    assert "Traceback" not in stopped.stderr
    (error,) = (line for line in stopped.stderr.splitlines() if line.startswith("error: "))
    assert "_of_2" in error
    assert not output.exists()
    assert run(small_recipe, output).returncode == 0
    assert contents(output) == contents(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def contents(bundle: Path) -> dict[str, str]:
    return {str(f.relative_to(bundle)): digest(f) for name in ("onnx", "qnn") for f in (bundle / name).rglob("*.*")}


def run(recipe: Path, output: Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """On a cluster of its own."""
    return apply_bounded(recipe, output, limit, "--executor", "dask", "--set", "backend.twins=never")
