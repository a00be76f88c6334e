"""Starts this package's child processes, gives them files, and says in one line how one of them ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from llmconv import BackendError
from llmconv_plugins.qnn.inside_child import PARENT
from llmconv_plugins.qnn.message import Arrays, receive, send

PACKAGES = Path(__file__).parents[2]  # the folder that holds llmconv_plugins
LINE_LIMIT = 300
KILLED = 9  # what the kernel ends a process with that takes the last memory; signal.SIGKILL where it exists
STOP_SECONDS = 0.2  # after which a child that is to stop is killed at the latest
PATIENCE = 10  # seconds that a child with a closed pipe may take to end

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d [\d:.]+ \[\w:onnxruntime:[^]]*\]\s*")
_TELLING = re.compile(r"error|fail|unsupported|exceed|cannot|terminate|what\(\)|needs .* KB|killed", re.IGNORECASE)
_EMPTY_WORDS = re.compile(
    r"explicitly disabled by the user|^Unsupported nodes in QNN EP|encryption config|single Quantize/Dequantize"
    r"|recursive_mutex|std::__1::system_error"
)


class Child:
    """A running `python -m MODULE`, killed if the block that holds it is left early.

    Args:
        log: file that takes what the child and its native libraries write to stderr.
        cwd: its working folder.
        libraries: folder where native libraries find each other (Linux).
        qnn: whether it needs the QNN compiler or the simulator.
    """

    def __init__(
        self,
        module: str,
        arguments: list[str],
        *,
        log: Path,
        cwd: Path,
        libraries: Path | None = None,
        qnn: bool = True,
    ) -> None:
        if qnn:
            check_installed()
        path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
        if libraries is not None:
            variables["LD_LIBRARY_PATH"] = os.pathsep.join(
                [str(libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
            )
        with log.open("ab") as stderr:  # so that whoever reads it may empty it
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=cwd,
                env=variables,
            )
        self.log = log

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe to the child."""
        return _pipe(self.process.stdin)

    @property
    def stdout(self) -> IO[bytes]:
        """The pipe from the child."""
        return _pipe(self.process.stdout)

    def finish(self, stop: threading.Event | None = None) -> bytes:
        """Let the child run to its end; returns what it wrote to stdout.

        Raises:
            BackendError: `stop` was set before; the block that holds the child then kills it.
        """
        while True:
            try:
                return self.process.communicate(timeout=None if stop is None else STOP_SECONDS)[0]
            except subprocess.TimeoutExpired:
                if stop is not None and stop.is_set():
                    raise BackendError("stopped, because something beside it failed") from None

    def ask(self, what: str, who: str, header: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Send a message and wait for the answer; what is wrong with the request is for the caller to find in it.

        Args:
            what, who: for errors: what is asked, and whom.

        Raises:
            BackendError: the child has ended.
        """
        try:
            send(self.stdin, header, arrays)
        except (OSError, ValueError) as error:  # ValueError: the pipe is closed
            raise BackendError(f"{what}: {who} {self.ending()}") from error
        return self.hear(what, who)

    def hear(self, what: str, who: str) -> tuple[dict[str, Any], Arrays]:
        """Wait for a message; as of `ask`."""
        try:
            return receive(self.stdout)
        except (EOFError, OSError, ValueError) as error:
            raise BackendError(f"{what}: {who} {self.ending()}") from error
        except BaseException:
            self.process.kill()  # the answer to this request must not be taken for the next one's
            raise

    def ending(self) -> str:
        """How an unsuccessful child ended, for an error message: the signal or exit code, and what the log says."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return "hangs without an answer"
        line = telling_line(self.log)
        return f"{_manner(code)}: {line}" if line else _manner(code)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):  # a child that died has left its pipe broken
                pipe.close()
        self.process.wait()


def check_installed() -> None:
    """The compiler and the simulator are there.

    Raises:
        BackendError: they are not.
    """
    for package, name in (("onnxruntime", "onnxruntime"), ("onnxruntime_qnn", "onnxruntime-qnn")):
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"the QNN compiler and simulator need {name}: pip install {name}")


def give(source: Path, target: Path) -> None:
    """Have `source` appear as `target` in a child's working folder."""
    try:
        target.symlink_to(source.resolve())
    except OSError:  # Windows lets few users make links
        shutil.copyfile(source, target)


def telling_line(log: Path) -> str:
    """The last line of a log that says what went wrong, without time, colour and source line; "" if none does."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    for line in reversed(lines):
        text = one_line(line)
        if _TELLING.search(text) and not _EMPTY_WORDS.search(text):
            return text
    return ""


def one_line(text: str) -> str:
    """A message from native code as one short line."""
    text = _PREFIX.sub("", _COLOUR.sub("", text)).strip()
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= LINE_LIMIT else text[: LINE_LIMIT - 1] + "…"


def _manner(code: int) -> str:
    if code >= 0:
        return f"ended early (exit code {code})"
    if -code == KILLED:
        return "was killed (SIGKILL; is memory short?)"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("the child has no such pipe")
    return pipe
