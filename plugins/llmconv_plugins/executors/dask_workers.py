"""Sends tasks to Dask workers, hears what they begin and end, and has them stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from uuid import uuid4

from distributed import Client, Event, Future, KilledWorker, get_client, get_worker
from distributed.client import FutureCancelledError

from llmconv import BackendError
from llmconv.work import Announce, Done, Outcome, Task, Workers

logger = logging.getLogger(__name__)
LOOK_SECONDS = 0.5  # between two looks of a running task at whether it is to stop


class DaskWorkers(Workers):
    """The workers that a client knows.

    Args:
        memories: worker -> bytes. A task that needs more than any has all of the largest for itself.
    """

    def __init__(self, client: Client, memories: Mapping[str, float]) -> None:
        self._client, self._largest = client, max(memories.values())

    def run(
        self,
        tasks: Sequence[Task],
        announce: Announce = lambda _names: None,
        done: Done = lambda _task, _outcome: None,
    ) -> list[Outcome]:
        """As of `Workers`."""
        topic, news = f"llmconv-{uuid4().hex}", SimpleQueue[str | Future]()
        self._client.subscribe_topic(topic, lambda event: news.put(event[1]))
        futures = {self._submit(task, topic): task for task in tasks}
        for future in futures:
            future.add_done_callback(news.put)
        outcomes, running = dict[int, Outcome](), list[str]()
        try:
            while len(outcomes) < len(tasks):
                heard = news.get()
                if isinstance(heard, str):
                    running = [*(name for name in running if name != heard), heard]  # begun again where one was lost
                else:
                    task = futures[heard]
                    running = [name for name in running if name != task.name]
                    outcomes[id(task)] = outcome = _outcome(task, heard)
                    done(task, outcome)
                if running:
                    announce(running)
        except BaseException:  # also Ctrl-C
            Event(topic, client=self._client).set()
            self._client.cancel(list(futures), force=True)
            raise
        finally:
            self._client.unsubscribe_topic(topic)
        return [outcomes[id(task)] for task in tasks]

    def _submit(self, task: Task, topic: str) -> Future:
        need = {"MEMORY": min(task.memory, self._largest)}
        return self._client.submit(_call, task, topic, key=f"{task.name}-{topic}", pure=False, resources=need)


def _outcome(task: Task, future: Future) -> Outcome:
    try:
        outcome: Outcome = future.result()
    except KilledWorker as error:
        raise BackendError(f"{task.name}: several workers were lost over it; is memory short?") from error
    except FutureCancelledError as error:
        raise BackendError(f"{task.name}: the Dask scheduler was lost, or let go of it") from error
    return outcome


def _call(task: Task, topic: str) -> Outcome:
    """On a worker: say that the task begins, and do it, unless it is to stop."""
    get_worker().log_event(topic, task.name)
    stop, ended, told = threading.Event(), threading.Event(), Event(topic, client=get_client())

    def look() -> None:
        try:
            while not (ended.wait(LOOK_SECONDS) or told.is_set()):
                pass
        except Exception as error:  # the scheduler is gone, and with it whoever wants the outcome
            logger.info("%s stops: %s", task.name, error)
        stop.set()

    threading.Thread(target=look, daemon=True).start()
    try:
        return task.call(stop)
    finally:
        ended.set()
