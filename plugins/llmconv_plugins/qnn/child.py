"""Starts the child processes that load Qualcomm's libraries, and turns their crashes into messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmconv import BackendError

JOB, RESULT, LOG = "job.json", "result.json", "log.txt"


def library_folder() -> Path:
    """The folder of the onnxruntime-qnn wheel, found without importing it.

    Raises:
        BackendError: it is not installed.
    """
    spec = find_spec("onnxruntime_qnn")
    if spec is None or spec.origin is None:
        raise BackendError("the QNN compiler is not installed: pip install onnxruntime-qnn")
    return Path(spec.origin).parent


def command(module: str) -> list[str]:
    """The command that runs one of this package's child modules."""
    return [sys.executable, "-m", f"llmconv_plugins.qnn.{module}"]


def environment() -> dict[str, str]:
    """The child's environment: the wheel's libraries find each other."""
    return {**os.environ, "LD_LIBRARY_PATH": f"{library_folder()}:{os.environ.get('LD_LIBRARY_PATH', '')}"}


def run_child(module: str, job: dict[str, Any], folder: Path, what: str) -> dict[str, Any]:
    """Run a child in `folder` on a job, and give its result.

    The child reads `job.json` and writes `result.json`; what it prints goes to `log.txt`.

    Raises:
        BackendError: it reported an error, or died. `what` opens the message.
    """
    (folder / JOB).write_text(json.dumps(job))
    with (folder / LOG).open("wb") as log:
        done = subprocess.run(  # noqa: S603  our own module
            command(module), cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        )
    result = folder / RESULT
    if not result.is_file():
        raise BackendError(f"{what}: {describe_exit(done.returncode)}{last_words(folder / LOG)}")
    found: dict[str, Any] = json.loads(result.read_text())
    if "error" in found:
        raise BackendError(f"{what}: {found['error']}")
    return found


def describe_exit(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"the child process ended with code {code}"
    name = signal.Signals(-code).name
    hint = "; the machine may be out of memory" if name == "SIGKILL" else ""
    return f"the native library crashed ({name}){hint}"


def last_words(log: Path) -> str:
    """The last line of a log that says something, for the end of a message."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"; its last words: {lines[-1][:300]}" if lines else ""
