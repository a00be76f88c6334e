"""Where a worker does a task: in a place of its own, from which the caller takes what was made."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import fsspec

from llmconv import BackendError
from llmconv.files import digest, link
from llmconv.work import Task

Files = dict[str, str]  # of a task, by their names: where they are


@dataclass(frozen=True)
class Places(ABC):
    """How files go to workers and come back; workers get a copy of it.

    Nothing that a worker does changes the caller's folder: a worker that is lost, or that nobody waits for any more,
    leaves at most files that are removed.
    """

    @abstractmethod
    def send(self, task: Task) -> Files:
        """Have workers find the files that a task reads."""

    @abstractmethod
    def place(self, sent: Files) -> AbstractContextManager[Path]:
        """On a worker: a folder with the files that were sent, for a block."""

    @abstractmethod
    def leave(self, place: Path, makes: Iterable[str]) -> Files:
        """On a worker: have the caller find what was made."""

    @abstractmethod
    def take(self, task: Task, made: Files) -> None:
        """Put what was made into the caller's folder, each file whole."""

    @abstractmethod
    def close(self) -> None:
        """Remove all that the tasks have left."""


@dataclass(frozen=True)
class SharedFolder(Places):
    """A folder that all workers see under the same path.

    Attributes:
        folder: beside the caller's.
    """

    folder: Path

    def send(self, task: Task) -> Files:
        """They are there."""
        return {name: str((task.folder / name).absolute()) for name in task.reads}

    @contextmanager
    def place(self, sent: Files) -> Iterator[Path]:
        """In the shared folder, so that what is made is moved and not copied; it stays until `close`."""
        place = self.folder / uuid4().hex
        place.mkdir()
        for name, file in sent.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            link(Path(file), place / name)
        yield place

    def leave(self, place: Path, makes: Iterable[str]) -> Files:
        """They are seen where they are."""
        return {name: str(place / name) for name in makes}

    def take(self, task: Task, made: Files) -> None:
        """Move each."""
        for name, file in made.items():
            (task.folder / name).parent.mkdir(parents=True, exist_ok=True)
            Path(file).replace(task.folder / name)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Store(Places):
    """A folder of any file system that fsspec knows, such as a bucket.

    Attributes:
        url: of the folder, which is this conversion's alone.
    """

    url: str
    _sent: dict[tuple[Path, int], str] = field(default_factory=dict, repr=False, compare=False)

    def send(self, task: Task) -> Files:
        """Copy what is not there, under the names of their sha256."""
        found = {}
        for name in task.reads:
            file = task.folder / name
            known = (file, file.stat().st_mtime_ns)
            if known not in self._sent:
                to, size = f"{self.url}/{digest(file)}", file.stat().st_size
                files, path = fsspec.core.url_to_fs(to)
                if not files.exists(path) or files.size(path) != size:
                    _put(file, to)
                self._sent[known] = to
            found[name] = self._sent[known]
        return found

    @contextmanager
    def place(self, sent: Files) -> Iterator[Path]:
        """A temporary folder of the worker.

        Raises:
            BackendError: a file is not the one that was sent.
        """
        with tempfile.TemporaryDirectory(prefix="llmconv-") as temporary:
            for name, url in sent.items():
                file = Path(temporary) / name
                _get(url, file)
                if digest(file) != url.rpartition("/")[2]:
                    raise BackendError(f"{url}: differs from what was sent; is another llmconv using this store?")
            yield Path(temporary)

    def leave(self, place: Path, makes: Iterable[str]) -> Files:
        """Copy each under a name that no other try of the task has."""
        found = {name: f"{self.url}/{uuid4().hex}" for name in makes}
        for name, url in found.items():
            _put(place / name, url)
        return found

    def take(self, task: Task, made: Files) -> None:
        """Copy each beside its place, and move it there."""
        for name, url in made.items():
            file = task.folder / name
            beside = file.with_name(f".{file.name}.partial")
            _get(url, beside)
            beside.replace(file)

    def close(self) -> None:
        """Remove the folder."""
        files, path = fsspec.core.url_to_fs(self.url)
        if files.exists(path):
            files.rm(path, recursive=True)


def _put(file: Path, url: str) -> None:
    files, path = fsspec.core.url_to_fs(url)
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    files.put_file(str(file), path)


def _get(url: str, file: Path) -> None:
    files, path = fsspec.core.url_to_fs(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.get_file(path, str(file))
