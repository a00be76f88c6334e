"""Tasks on a Dask cluster: of this machine, or of any whose workers see the same folder and run the same code."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from llmconv import BackendError
from llmconv.work import Executor, Outcome, Task, Workers, environment, memory_at_hand
from llmconv_plugins.executors.environments import difference

if TYPE_CHECKING:
    from distributed import Client

    from llmconv_plugins.executors.places import Places

MEMORY = "MEMORY"  # the resource, bytes
PATIENCE = 20  # seconds that a scheduler may take to answer, and workers to be there
LOGGERS = ("llmconv", "llmconv_plugins")


@dataclass(frozen=True)
class Dask(Executor):
    """Each task goes to a worker that has its memory left; one whose worker is lost goes to another.

    Attributes:
        scheduler: its address; without one, a cluster of this machine is started, and ended.
        store: where files go to workers and back that do not see the output folder: a folder's URL, of any file system
            that fsspec knows, such as s3://bucket/folder.
    """

    name: ClassVar[str] = "dask"

    scheduler: str | None = None
    store: str | None = None

    @contextmanager
    def open(self, folder: Path, jobs: int | None) -> Iterator[Workers]:
        """Connect, and refuse workers that would make other files."""
        try:
            import distributed  # noqa: F401, PLC0415  of the extra
        except ImportError as error:
            raise BackendError("executor 'dask' needs distributed: pip install 'llmconv[dask]'") from error
        from llmconv_plugins.executors.dask_workers import DaskWorkers  # noqa: PLC0415  imports it

        here = environment()
        with ExitStack() as stack:
            stack.enter_context(_quiet())
            places = stack.enter_context(_places(folder.absolute(), self.store))
            address = self.scheduler or stack.enter_context(_this_machine(jobs))
            client = stack.enter_context(_connected(address))
            _check(client, folder, self.store, places, here)
            for name in LOGGERS:
                client.forward_logging(name, level=logging.getLogger(name).getEffectiveLevel())
            yield DaskWorkers(client, _memories(client), places, here)


@contextmanager
def _places(folder: Path, store: str | None) -> Iterator[Places]:
    """Where workers do the tasks of a folder; nothing is left there.

    Raises:
        BackendError: the store cannot be used.
    """
    from llmconv_plugins.executors.places import SharedFolder, Store  # noqa: PLC0415  imports fsspec

    if store is None:
        shared = folder.with_name(f".{folder.name}.tasks")
        places: Places = SharedFolder(shared)
        places.close()  # what a run that was killed has left
        shared.mkdir()
    else:
        own = hashlib.sha256(f"{platform.node()} {folder}".encode()).hexdigest()[:16]  # the same for the next run
        places = Store(f"{store.rstrip('/')}/{own}")
        with _usable(store):
            places.close()
    try:
        yield places
    finally:
        places.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """What Dask says of workers that come and go is for --verbose; what matters of it is in errors."""
    dask = logging.getLogger("distributed")
    before = dask.level
    if not logging.getLogger().isEnabledFor(logging.INFO):
        dask.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        dask.setLevel(before)


@contextmanager
def _this_machine(jobs: int | None) -> Iterator[str]:
    """One worker with all memory at hand: two would each have to be given a part of it.

    Its threads wait for the processes that tasks start; it is a process itself, and is started again when it ends.
    """
    from distributed import LocalCluster  # noqa: PLC0415  as above

    with LocalCluster(
        n_workers=1,
        threads_per_worker=jobs or os.cpu_count() or 1,
        processes=True,
        memory_limit=None,
        resources={MEMORY: memory_at_hand()},
        dashboard_address=":0",  # any port: another apply may have the usual one
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster.scheduler_address


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    from distributed import Client  # noqa: PLC0415  as above

    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise BackendError(
            f"no Dask scheduler answers at {address} ({_line(error)}); start one: dask scheduler"
        ) from error
    with client:
        yield client


def _check(client: Client, folder: Path, store: str | None, places: Places, here: Mapping[str, str]) -> None:
    """Whether there are workers, and each has a memory, sees the files and runs the same code.

    Raises:
        BackendError: the first that does not.
    """
    address = client.scheduler.address
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        raise BackendError(
            f"the Dask scheduler at {address} has no workers; start one: dask worker {address}"
        ) from error
    for worker, memory in _memories(client).items():
        if not memory:
            raise BackendError(
                f"Dask worker {worker} does not say what memory it has; start it with: "
                f'dask worker {address} --resources "{MEMORY}=8e9"'
            )
    name = f".{uuid4().hex}.probe"
    (folder / name).touch()
    try:
        with _usable(store):
            sent = places.send(Task("probe", 0, _nothing, folder, (name,)))
        for worker, seen in client.run(_seen, places, sent, on_error="return").items():
            if seen is not True:
                where, share = (
                    (folder, "share it under the same path, or name an executor.store")
                    if store is None
                    else (store, "have it reach that")
                )
                raise BackendError(f"Dask worker {worker} does not see {where} ({_line(seen)}); {share}")
    finally:
        (folder / name).unlink()
    for worker, there in client.run(environment, on_error="return").items():
        if not isinstance(there, dict):
            raise BackendError(f"Dask worker {worker} cannot run llmconv ({there}); install the same version there")
        if wrong := difference(worker, there, here):
            raise BackendError(wrong)


@contextmanager
def _usable(store: str | None) -> Iterator[None]:
    """Say in a line what is wrong with a store, if there is one."""
    try:
        yield
    except Exception as error:  # a file system's own exceptions have no common base
        if store is None:
            raise
        raise BackendError(f"executor.store = '{store}' cannot be used: {_line(error)}") from error


def _nothing(_folder: Path, _stop: threading.Event) -> Outcome:
    return Outcome(None)


def _seen(places: Places, sent: dict[str, str]) -> bool:
    """On a worker: whether it finds a file that was sent."""
    with places.place(sent) as place:
        return all((place / name).is_file() for name in sent)


def _line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _memories(client: Client) -> dict[str, float]:
    """Worker -> bytes that it declares; 0 where it declares none."""
    workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return {address: worker["resources"].get(MEMORY, 0) for address, worker in workers.items()}
