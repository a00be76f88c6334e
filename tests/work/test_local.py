"""Work in forked processes: its files, its errors, and how it ends."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from llmconv import BackendError, LlmconvError
from llmconv.work import in_processes
from llmconv.work.local import beside

ITEMS = ["a", "b", "c", "d", "e"]
forking = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.mark.parametrize("jobs", [1, 2, 9, None])
def test_every_item_is_done_and_announced_in_order(tmp_path: Path, jobs: int | None) -> None:
    announced: list[str] = []
    in_processes(lambda item: (tmp_path / item).write_text(item), ITEMS, jobs, announced.append)
    assert announced == ITEMS
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {item: item for item in ITEMS}


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_to_do(jobs: int) -> None:
    in_processes(pytest.fail, [], jobs)


@forking
def test_one_job_stays_here_and_more_do_not(tmp_path: Path) -> None:
    def note(item: str) -> None:
        (tmp_path / item).write_text(str(os.getpid()))

    def found() -> set[int]:
        return {int(file.read_text()) for file in tmp_path.iterdir()}

    in_processes(note, ITEMS, 1)
    assert found() == {os.getpid()}
    in_processes(note, ITEMS, 2)
    assert os.getpid() not in found()


@forking
def test_torch_computes_after_its_threads_were_lost_in_the_fork(tmp_path: Path) -> None:
    matrix = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    expected = (matrix @ matrix).sum()  # starts the threads

    def compute(item: str) -> None:
        torch.save((matrix @ matrix).sum(), tmp_path / item)

    in_processes(compute, ITEMS, 2)
    for item in ITEMS:
        torch.testing.assert_close(torch.load(tmp_path / item), expected)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_the_work_is_this_processs_error(jobs: int) -> None:
    def work(item: str) -> None:
        if item == "b":
            raise BackendError(f"{item}: too large")

    with pytest.raises(BackendError, match="b: too large"):
        in_processes(work, ITEMS, jobs)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_the_disk_keeps_its_cause_and_its_file(jobs: int) -> None:
    def work(item: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", item)

    with pytest.raises(OSError, match="No space left on device") as caught:
        in_processes(work, ITEMS, jobs)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "a")


@forking
def test_a_killed_process_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(LlmconvError, match=r"was killed; is memory short\? pass --jobs 1"):
        in_processes(lambda _item: os.kill(os.getpid(), signal.SIGKILL), ITEMS, 2)


@forking
def test_what_is_done_beside_the_block_comes_back(tmp_path: Path) -> None:
    here = os.getpid()
    with beside(lambda: (os.getpid(), str(tmp_path))) as found:
        assert found is not None
        process, value = found.result(60)
        _until(lambda: not _lives(process))  # whatever else the block does
    assert process != here
    assert value == str(tmp_path)


@forking
def test_an_error_and_a_death_beside_the_block_are_told_to_who_asks() -> None:
    with beside(lambda: 1 // 0) as found:
        assert found is not None
        assert isinstance(found.exception(60), ZeroDivisionError)
    with beside(lambda: os.kill(os.getpid(), signal.SIGKILL)) as found:
        assert found is not None
        assert isinstance(found.exception(60), BrokenProcessPool)


@forking
@pytest.mark.parametrize("ended", [None, KeyboardInterrupt])
def test_what_is_beside_the_block_ends_with_it(tmp_path: Path, ended: type[BaseException] | None) -> None:
    file = tmp_path / "process"

    def work() -> None:
        file.write_text(str(os.getpid()))
        time.sleep(100)

    with pytest.raises(ended) if ended else nullcontext(), beside(work):
        _until(lambda: file.is_file() and bool(file.read_text()))
        if ended:
            raise ended
    _until(lambda: not _lives(int(file.read_text())))


@forking
def test_garbage_of_this_process_is_not_taken_apart_in_another(tmp_path: Path) -> None:
    class Session:
        def __del__(self) -> None:  # one of ONNX Runtime would wait for threads that a fork does not copy
            (tmp_path / str(os.getpid())).touch()

    def work(_item: str = "") -> None:
        gc.collect()

    gc.disable()
    try:
        session = Session()
        session.itself = session  # type: ignore[attr-defined]
        del session
        in_processes(work, ITEMS, 2)
        with beside(work) as found:
            assert found is not None
            found.result(60)
        assert not list(tmp_path.iterdir())
    finally:
        gc.enable()
    gc.collect()
    assert [file.name for file in tmp_path.iterdir()] == [str(os.getpid())]


PARENT = """
import os, sys, time
from llmconv.work import in_processes

def work(item):
    with open(item, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(100)

in_processes(work, sys.argv[1:], 2)
"""


@forking
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *map(str, files)])
    _until(lambda: all(file.is_file() and file.read_text() for file in files))
    children = [int(file.read_text()) for file in files]
    parent.send_signal(how)
    parent.wait()
    _until(lambda: not any(_lives(child) for child in children))


INTERRUPTED = """
import os, sys, time
from pathlib import Path
from llmconv.work import in_processes

def work(item):
    Path(item).write_text(str(os.getpid()))
    time.sleep(100)

def announce(item):
    if sys.argv[1] == "raise":
        while not all(Path(file).is_file() for file in sys.argv[2:4]):
            time.sleep(0.01)
        raise OSError("cannot say so")

try:
    in_processes(work, sys.argv[2:], 2, announce)
except BaseException as error:
    children = [int(Path(file).read_text()) for file in sys.argv[2:4]]
    alive = [child for child in children if Path(f"/proc/{child}").exists()]
    print(type(error).__name__, alive)  # the lock would be released now
"""


@forking
@pytest.mark.parametrize("how", ["interrupt", "raise"])
def test_an_interrupted_call_leaves_no_process_behind_and_begins_nothing_more(tmp_path: Path, how: str) -> None:
    files = [tmp_path / item for item in ITEMS]
    command = [sys.executable, "-c", INTERRUPTED, how, *map(str, files)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        _until(lambda: all(file.is_file() and file.read_text() for file in files[:2]))
        began = time.monotonic()
        if how == "interrupt":
            parent.send_signal(signal.SIGINT)
        said, _ = parent.communicate(timeout=20)
        assert time.monotonic() - began < 5  # a fraction of a second on a quiet machine
    assert said == {"interrupt": "KeyboardInterrupt []\n", "raise": "OSError []\n"}[how]
    assert not any(file.exists() for file in files[2:])


def _until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def _lives(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.is_file() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"  # a zombie waits for init
