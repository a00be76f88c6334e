"""What tests have Dask workers do; apart from them, so that a worker imports no torch for it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

from llmconv.errors import BackendError
from llmconv.work import Outcome

PATIENCE = 120  # seconds


def note(folder: Path, name: str, seconds: float, _place: Path, _stop: threading.Event) -> Outcome:
    """Write down when it began and ended."""
    (folder / f"{name}.began").write_text(str(time.monotonic()))
    time.sleep(seconds)
    (folder / f"{name}.ended").write_text(str(time.monotonic()))
    return Outcome(name)


def die_once(folder: Path, _place: Path, _stop: threading.Event) -> Outcome:
    """End its process, the first time."""
    with (folder / "attempts").open("a") as attempts:
        attempts.write("x")
    if len((folder / "attempts").read_text()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "made").write_text("whole")
    return Outcome("made")


def refuse(_place: Path, _stop: threading.Event) -> Outcome:
    """Fail."""
    raise BackendError("part 1: refused")


def wait(notes: Path, place: Path, stop: threading.Event) -> Outcome:
    """Go on until it is to stop, and then write a file, as what cannot be stopped at once."""
    (notes / "waits").touch()
    stopped = stop.wait(PATIENCE)
    (place / "made").write_text("late")
    (notes / ("stopped" if stopped else "went on")).touch()
    return Outcome(None)


def say(_place: Path, _stop: threading.Event) -> Outcome:
    """Log a line."""
    logging.getLogger("llmconv.somewhere").warning("the table is tied")
    return Outcome(os.getpid())


def double(caller: Path, folder: Path, _stop: threading.Event) -> Outcome:
    """Make one of the files that it writes of the one that it reads, not in the caller's folder."""
    assert not folder.is_relative_to(caller)
    text = (folder / "onnx" / "in.txt").read_text()
    (folder / "qnn").mkdir()
    (folder / "qnn" / "out.bin").write_text(2 * text)
    (folder / "qnn" / "more.txt").write_text("of no use")
    return Outcome(len(text))
