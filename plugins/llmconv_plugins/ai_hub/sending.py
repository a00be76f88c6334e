"""Uploads and jobs: sent once, found again after a run that broke off, waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from llmconv import BackendError
from llmconv_plugins.ai_hub.client_internals import pb
from llmconv_plugins.ai_hub.ledger import Entry, Ledger
from llmconv_plugins.ai_hub.patience import Patience, StoppedError
from llmconv_plugins.ai_hub.service import FAILED, JobStatus, MissingError, Service, UnavailableError
from llmconv_plugins.ai_hub.stores import Store

T = TypeVar("T")
DOWNLOADS = 3  # tries to get a file that is whole
POLL_SECONDS = 10.0  # between two looks at a job; the client's own pace
PACKED = ".to_send_"  # what names of packages begin with
LOGS = "ai_hub_logs"  # folder of the logs of jobs that failed


@dataclass
class Sending:
    """One run's dealings with the service; its methods are called from many threads.

    Attributes:
        folder: of the bundle; takes packages for a moment, and logs of failed jobs.
        uploads, jobs: how many at once.
        closed: set when nothing new is to be sent.
    """

    service: Service
    ledger: Ledger
    patience: Patience
    folder: Path
    uploads: threading.Semaphore
    jobs: threading.Semaphore
    closed: threading.Event = field(default_factory=threading.Event)

    def upload(self, store: Store, label: str, key: str, write: Callable[[Path], object]) -> str:
        """Id of the model or dataset that holds a file; uploads it unless the service has it, whole.

        Args:
            key: of the content.
            write: the file.
        """
        slot = f"upload {label}"
        with self.uploads:
            entry, whole = self._announced(store, slot, key)
            if whole:
                self.ledger.update(entry, complete=True)
                return entry.id
            file = self.folder / f"{PACKED}{label}{store.suffix}"
            try:
                self.patience.say(f"{slot}: packing")
                write(file)
                self.patience.say(f"{slot}: {file.stat().st_size / 1e6:.1f} MB to {store.word} {entry.id}")
                self._send(store, entry, file)
            finally:
                file.unlink(missing_ok=True)
            self.ledger.update(entry, complete=True)
            self.patience.say(f"{slot}: done")
            return entry.id

    def remove_packages(self) -> None:
        """Remove those that are being sent, by threads that will not end."""
        for file in self.folder.glob(f"{PACKED}*"):
            file.unlink(missing_ok=True)

    def run(self, slot: str, key: str, make: Callable[[str], pb.Job]) -> Entry:
        """A job that is done; submits it unless it was submitted before.

        Args:
            key: of what is sent and every option.
            make: the job of a given name.

        Raises:
            BackendError: it failed, with the service's reason.
        """
        done = self.ledger.entry(slot, key)
        if done is not None and done.complete:
            return done
        with self.jobs:
            while True:
                entry = self._submitted(slot, key, make)
                try:
                    status = self._wait(entry)
                except MissingError:
                    self.patience.say(f"{slot}: AI Hub no longer has job {entry.id}; submitting again")
                    self.ledger.drop(entry)
                    continue
                if status.state == FAILED:
                    raise self._failure(entry, status)
                return self.ledger.update(entry, complete=True, target=status.target, seconds=status.seconds)

    def fetched(self, what: str, done: Entry, fetch: Callable[[], T]) -> T:
        """What a finished job made, whole; brought again where it is not.

        Args:
            fetch: brings it and reads it; a `BackendError` says that it is not whole.

        Raises:
            BackendError: it is not whole, time and again; or gone: the job is then forgotten.
        """
        for left in reversed(range(DOWNLOADS)):
            try:
                return self.patience.persist(what, fetch)
            except MissingError as error:
                self.ledger.drop(done)
                message = f"AI Hub no longer has what {done.slot} made; the same command again makes it anew"
                raise BackendError(message) from error
            except BackendError as error:
                if not left:
                    raise BackendError(f"AI Hub: {what}: not whole, {DOWNLOADS} times over: {error}") from error
                self.patience.say(f"{what}: not whole; once more")
        raise AssertionError("unreachable")

    def _announced(self, store: Store, slot: str, key: str) -> tuple[Entry, bool]:
        """The entry of something that the service knows of, and whether its file is there, whole."""
        while True:
            entry = self._sent(
                slot,
                key,
                lambda e: store.find(e.name, e.since),
                lambda e: store.create(e.name),
            )
            try:
                return entry, self.patience.persist(slot, partial(store.is_uploaded, entry.id))
            except MissingError:
                self.patience.say(f"{slot}: AI Hub no longer has {store.word} {entry.id}; uploading again")
                self.ledger.drop(entry)

    def _send(self, store: Store, entry: Entry, file: Path) -> None:
        """Send a file; where only the answer was lost, it is not sent again."""
        may_be_there = False

        def attempt() -> None:
            nonlocal may_be_there
            if not (may_be_there and store.is_uploaded(entry.id)):
                may_be_there = True
                store.send(entry.id, file)

        self.patience.persist(entry.slot, attempt)

    def _submitted(self, slot: str, key: str, make: Callable[[str], pb.Job]) -> Entry:
        return self._sent(
            slot,
            key,
            lambda e: self.service.find_job(e.name, e.since),
            lambda e: self.service.submit(make(e.name)),
        )

    def _sent(self, slot: str, key: str, find: Callable[[Entry], str | None], send: Callable[[Entry], str]) -> Entry:
        """Send something once: what may have arrived already is looked up by its name first."""
        known = self.ledger.entry(slot, key)
        if known is not None and known.id:
            return known
        if known is None and self.closed.is_set():
            raise StoppedError
        entry, may_be_there = known or self.ledger.begin(slot, key), known is not None

        def attempt() -> str:
            nonlocal may_be_there
            found = find(entry) if may_be_there else None
            may_be_there = True
            return found or send(entry)

        try:
            return self.ledger.update(entry, id=self.patience.persist(slot, attempt))
        except MissingError as error:  # what it is made from
            self.ledger.drop(entry)
            raise BackendError(f"AI Hub, {slot}: {error}; run with --fresh to send everything again") from error

    def _wait(self, entry: Entry) -> JobStatus:
        last = ""
        while True:
            status = self.patience.persist(entry.slot, lambda: self.service.status(entry.id))
            if status.state != last:
                self.patience.say(f"{entry.slot}: job {entry.id} {status.state}")
                last = status.state
            if status.final:
                return status
            self.patience.sleep(POLL_SECONDS)

    def _failure(self, entry: Entry, status: JobStatus) -> BackendError:
        """What to say of a failed job; it is not kept."""
        folder = self.folder / LOGS / f"{entry.slot.replace(' ', '_')}_{entry.id}"
        try:
            logs = self.service.logs(entry.id, folder)
        except (UnavailableError, MissingError, BackendError, OSError):
            logs = []
        self.ledger.drop(entry)
        where = f"; its log is in {folder}" if logs else ""
        reason = " ".join(status.reason.split()) or "without a reason"
        return BackendError(f"AI Hub: {entry.slot} failed: {reason}; see {self.service.link(entry.id)}{where}")
