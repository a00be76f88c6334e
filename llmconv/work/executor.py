"""What an executor plugin gives: somebody who does tasks, as many at once as memory allows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llmconv.plugins.frame import Framed
from llmconv.work.task import Outcome, Task

Announce = Callable[[list[str]], None]
Done = Callable[[Task, Outcome], None]


class Workers(ABC):
    """Do tasks."""

    @abstractmethod
    def run(
        self,
        tasks: Sequence[Task],
        announce: Announce = lambda _names: None,
        done: Done = lambda _task, _outcome: None,
    ) -> list[Outcome]:
        """Do every task; outcomes are in the order of the tasks.

        Args:
            announce: called with the names of what runs, whenever that changes.
            done: called with each task that ended well, in the caller's thread.

        Raises:
            LlmconvError: of the first task that failed; those that ran were told to stop, the others never started.
        """


@dataclass(frozen=True)
class Executor(Framed, ABC):
    """Says who does the tasks. A subclass is a frozen dataclass; its fields are the recipe's `[executor]` options."""

    name: ClassVar[str]

    @abstractmethod
    def open(self, folder: Path, jobs: int | None) -> AbstractContextManager[Workers]:
        """Workers that see `folder`; they end when the block does, however it ends.

        Args:
            folder: where the tasks' files lie; it is there.
            jobs: how many tasks at once at most; None for as many as there are cores.

        Raises:
            LlmconvError: what is missing, before any work starts.
        """
