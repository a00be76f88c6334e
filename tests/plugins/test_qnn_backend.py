"""The compiler's process: it ends when told to, measures its own memory, and says what to do where that is short."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from llmconv import BackendError
from llmconv_plugins.qnn import compile_task
from llmconv_plugins.qnn.child import Child
from llmconv_plugins.qnn.compile_task import Largest

PATIENCE = 10  # seconds that a test waits for a thread before it fails


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
    found = compile_task._remedy(message, Largest("prompt", 1024))
    assert found.startswith(remedy)
    assert bool(found) == bool(remedy)
