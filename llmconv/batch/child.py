"""A conversion in a process of its own, so that whatever becomes of it, the others go on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ERROR = "error: "  # how the line begins in which the command line says what is wrong
SAID = 50  # lines that are looked at for it
PATIENCE = 20  # seconds that it may take to end by itself


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: that it gave; negative where a signal ended it.
        seconds: that it took.
        error: in a line; None where it ended well.
    """

    code: int
    seconds: float
    error: str | None


def run(command: Sequence[str], log: Path, heard: Callable[[str], None]) -> Ended:
    """Run a command of llmconv to its end; it ends early where this process is interrupted.

    Args:
        log: takes all that it says.
        heard: called with each line.
    """
    began, said = time.monotonic(), deque[str](maxlen=SAID)
    with log.open("w", encoding="utf-8") as file, _started(command) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                file.flush()
                if text := line.strip():
                    said.append(text)
                    heard(text)
            code = process.wait()
        except BaseException:  # also Ctrl-C
            _end(process)
            raise
    return Ended(code, time.monotonic() - began, _error(code, said))


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        process_group=0,  # Ctrl-C reaches this process alone
    )


def _end(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C would, which has it end what it has started; by force where that does not help."""
    if sys.platform != "win32":
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    process.kill()


def _error(code: int, said: Sequence[str]) -> str | None:
    if code == 0:
        return None
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}; is memory short?"
    known = [line.removeprefix(ERROR) for line in said if line.startswith(ERROR)]
    return known[-1] if known else next(iter(reversed(said)), f"it ended with exit code {code}")
