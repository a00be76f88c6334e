"""Sends tasks to Dask workers, hears what they begin and end, and has them stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from distributed import Client, Future, KilledWorker, Status, Worker, get_worker
from distributed.client import FutureCancelledError

from llmconv import BackendError
from llmconv.work import Announce, Done, Outcome, Task, Workers, environment
from llmconv_plugins.executors.environments import difference
from llmconv_plugins.executors.places import Files, Places

logger = logging.getLogger(__name__)
LOOK_SECONDS = 0.5  # between two looks of a running task at whether it is to stop


class DaskWorkers(Workers):
    """The workers that a client knows.

    Args:
        memories: worker -> bytes. A task that needs more than any has all of the largest for itself.
        places: where they do the tasks.
        here: the environment that they must have.
    """

    def __init__(self, client: Client, memories: Mapping[str, float], places: Places, here: Mapping[str, str]) -> None:
        self._client, self._largest = client, max(memories.values())
        self._places, self._here = places, dict(here)

    def run(
        self,
        tasks: Sequence[Task],
        announce: Announce = lambda _names: None,
        done: Done = lambda _task, _outcome: None,
    ) -> list[Outcome]:
        """As of `Workers`."""
        topic, news = f"llmconv-{uuid4().hex}", SimpleQueue[tuple[str, bool] | Future]()
        self._client.subscribe_topic(topic, lambda event: news.put(tuple(event[1])))
        futures: dict[Future, Task] = {}
        outcomes, running = dict[int, Outcome](), list[str]()
        try:
            for task in tasks:
                future = self._submit(task, topic)
                futures[future] = task
                future.add_done_callback(news.put)
            while len(outcomes) < len(tasks):
                heard = news.get()
                if isinstance(heard, tuple):
                    name, begins = heard
                    running = [other for other in running if other != name]  # begun again where one was lost
                    running += [name] if begins else []
                else:
                    task = futures[heard]
                    running = [name for name in running if name != task.name]
                    outcome, made = _outcome(task, heard)
                    self._places.take(task, made)
                    outcomes[id(task)] = outcome
                    done(task, outcome)
                if running:
                    announce(running)
        except BaseException:  # also Ctrl-C
            self._client.cancel(list(futures), force=True)
            raise
        finally:
            self._client.unsubscribe_topic(topic)
        return [outcomes[id(task)] for task in tasks]

    def _submit(self, task: Task, topic: str) -> Future:
        need, sent = {"MEMORY": min(task.memory, self._largest)}, self._places.send(task)
        arguments = (replace(task, folder=task.folder.absolute()), topic, self._places, sent, self._here)
        return self._client.submit(_call, *arguments, key=f"{task.name}-{topic}", pure=False, resources=need)


def _outcome(task: Task, future: Future) -> tuple[Outcome, Files]:
    try:
        outcome: tuple[Outcome, Files] = future.result()
    except KilledWorker as error:
        raise BackendError(f"{task.name}: several workers were lost over it; is memory short?") from error
    except FutureCancelledError as error:
        raise BackendError(f"{task.name}: the Dask scheduler was lost, or let go of it") from error
    return outcome


_environment = cache(environment)  # what a process runs stays the same


def _call(task: Task, topic: str, places: Places, sent: Files, here: Mapping[str, str]) -> tuple[Outcome, Files]:
    """On a worker: say that the task begins, and do it, unless it is to stop."""
    worker: Any = get_worker()
    if wrong := difference(worker.address, _environment(), here):  # of one that came later than the caller looked
        raise BackendError(wrong)
    worker.log_event(topic, (task.name, True))
    key, stop, ended = worker.get_current_task(), threading.Event(), threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            if not _wanted(worker, key):
                logger.info("%s stops: nobody waits for it any more", task.name)
                stop.set()

    threading.Thread(target=look, daemon=True).start()
    try:
        with places.place(sent) as place:
            outcome = replace(task, folder=place).run(stop)
            return outcome, places.leave(place, task.makes)
    finally:
        ended.set()
        worker.log_event(topic, (task.name, False))


def _wanted(worker: Worker, key: str) -> bool:
    """Whether somebody still waits for a task: not after a failure, Ctrl-C, or an end of caller or scheduler."""
    task = worker.state.tasks.get(key)
    return worker.status in (Status.running, Status.paused) and task is not None and task.state == "executing"
