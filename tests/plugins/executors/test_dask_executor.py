"""Tasks on a Dask cluster of processes: in bounds of memory, again where a worker is lost, one line where none fits."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from dask_tasks import die_once, note, refuse, wait

from llmconv import BackendError, Bundle, Recipe, apply
from llmconv.files import digest
from llmconv.work import Task, Workers
from llmconv_plugins.executors import dask_executor
from llmconv_plugins.executors.dask_executor import MEMORY, Dask

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow
PATIENCE = 20  # seconds


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dask_executor, "memory_at_hand", lambda: 100)
        with Dask().open(tmp_path_factory.mktemp("bundle"), 2) as opened:
            yield opened


def test_outcomes_are_in_order_and_told(workers: Workers, tmp_path: Path) -> None:
    tasks = [Task(str(i), 10, partial(note, tmp_path, str(i), 0.2 - 0.1 * i)) for i in range(3)]
    said: list[list[str]] = []
    told: list[tuple[str, int]] = []
    outcomes = workers.run(tasks, said.append, lambda task, _: told.append((task.name, threading.get_ident())))
    assert [outcome.value for outcome in outcomes] == ["0", "1", "2"]
    assert sorted(told) == [(name, threading.get_ident()) for name in ("0", "1", "2")]
    assert {name for names in said for name in names} == {"0", "1", "2"}
    assert max(map(len, said)) == 2


@pytest.mark.parametrize("memory", [60, 500])
def test_tasks_share_a_worker_only_as_far_as_its_memory_goes(workers: Workers, tmp_path: Path, memory: int) -> None:
    workers.run([Task(name, memory, partial(note, tmp_path, name, 0.2)) for name in "ab"])
    (a, a_end), (b, b_end) = (
        [float((tmp_path / f"{name}.{what}").read_text()) for what in ("began", "ended")] for name in "ab"
    )
    assert a_end <= b or b_end <= a


def test_task_of_a_lost_worker_is_done_again(workers: Workers, tmp_path: Path) -> None:
    assert workers.run([Task("dies", 1, partial(die_once, tmp_path))])[0].value == "made"
    assert (tmp_path / "attempts").read_text() == "xx"
    assert (tmp_path / "made").read_text() == "whole"


def test_first_failure_is_the_callers_and_stops_the_others(workers: Workers, tmp_path: Path) -> None:
    tasks = [Task("waits", 1, partial(wait, tmp_path)), Task("bad", 1, refuse)]
    with pytest.raises(BackendError, match=r"^part 1: refused$"):
        workers.run(tasks)
    stops(tmp_path)


def stops(folder: Path) -> None:
    began = time.monotonic()
    while not (folder / "stopped").exists():
        assert time.monotonic() - began < PATIENCE / 2
        time.sleep(0.1)


def test_interrupt_stops_what_runs(workers: Workers, tmp_path: Path) -> None:
    def interrupt(_names: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.run([Task("waits", 1, partial(wait, tmp_path))], interrupt)
    stops(tmp_path)


def test_worker_with_other_versions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_executor, "environment", lambda: {"onnxruntime": str(os.getpid())})
    with (
        pytest.raises(BackendError, match=r"worker tcp://\S+ differs: onnxruntime is \d+ there and \d+ here; install"),
        Dask().open(tmp_path, 1),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_worker_that_names_no_memory_is_refused(tmp_path: Path) -> None:
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        pytest.raises(BackendError, match=f'--resources "{MEMORY}=8e9"'),
        Dask(cluster.scheduler_address).open(tmp_path, None),
    ):
        pass


def test_scheduler_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_executor, "PATIENCE", 1)
    with (
        pytest.raises(BackendError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 .*start one"),
        Dask("tcp://127.0.0.1:1").open(tmp_path, None),
    ):
        pass


def test_bundle_has_the_bytes_of_a_local_one(small_recipe: Path, small_bundle: Bundle, tmp_path: Path) -> None:
    recipe = Recipe.load(small_recipe, [f"output.folder='{tmp_path / 'b'}'"], executor="dask")
    found = apply(recipe, verify=False)
    files = [name for name in small_bundle.manifest["files"] if name.startswith(("onnx/", "qnn/"))]
    assert len(files) == 12
    assert {name: digest(found.path(name)) for name in files} == {
        name: digest(small_bundle.path(name)) for name in files
    }
    assert found.manifest["recipe"] == small_bundle.manifest["recipe"]
    assert not list(found.folder.rglob("*.compiling"))


def test_weights_quantized_by_workers_have_the_bytes_of_a_local_run(small_recipe: Path, tmp_path: Path) -> None:
    quantized = ["passes.w4a16.quantizer=gptq", "passes.w4a16.inputs=float"]
    sums = []
    for executor in ("local", "dask"):
        folder = tmp_path / executor
        recipe = Recipe.load(small_recipe, [f"output.folder='{folder}'", *quantized], backend="onnx", executor=executor)
        sums.append(
            {path.name: digest(path) for path in sorted((apply(recipe, verify=False).folder / "onnx").iterdir())}
        )
        records = {path.stem for path in (folder / ".steps").glob("quantize_*.json")}
        assert {"quantize_1_1", "quantize_2_1"} <= records
    assert sums[0] == sums[1]
