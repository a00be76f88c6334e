"""Calls that are repeated while the service does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from llmconv import BackendError
from llmconv_plugins.ai_hub.service import UnavailableError

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # seconds between two tries


class StoppedError(Exception):
    """The run ends; whatever goes on at the service goes on there."""


@dataclass(frozen=True)
class Patience:
    """How long to go on without an answer.

    Attributes:
        seconds: from the first call without an answer to the last.
        say: told what does not answer, and when the next try is.
        stop: ends every wait.
    """

    seconds: float
    say: Callable[[str], None]
    stop: threading.Event

    def persist(self, what: str, call: Callable[[], T]) -> T:
        """Call until there is an answer.

        Raises:
            BackendError: there was none for too long.
            StoppedError: the run ends.
        """
        began, pause = 0.0, FIRST_PAUSE
        while True:
            if self.stop.is_set():
                raise StoppedError
            try:
                return call()
            except UnavailableError as error:
                began = began or time.monotonic()
                if time.monotonic() - began + pause > self.seconds:
                    raise BackendError(
                        f"AI Hub, {what}: {error}, for {time.monotonic() - began:.0f} s; nothing is lost, the same "
                        "command goes on from here (backend.patience is how many seconds to wait)"
                    ) from error
                self.say(f"{what}: {error}; next try in {pause:.0f} s")
                self.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            StoppedError: the run ends.
        """
        if self.stop.wait(seconds):
            raise StoppedError
