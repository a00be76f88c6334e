"""Finished steps of a conversion, kept on disk: a second run goes on where the first one stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from llmconv.errors import BundleError
from llmconv.files import digest, write_json

STEPS = ".steps"  # folder of the records, in the folder of the files


def key_of(**inputs: Any) -> str:
    """The key of a step that depends on `inputs` alone, as JSON."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


class Steps:
    """Steps over a folder; a step is known by name, and holds as long as its key is the same and its files are whole.

    Args:
        folder: holds the files of the steps, and the records in `.steps`.
        inputs: what every step that passes make depends on, as JSON.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self.folder, self._inputs = folder, dict(inputs)
        self._records: dict[str, dict[str, Any]] = {}
        self._claimed: set[str] = set()
        for file in sorted((folder / STEPS).glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError):  # a record cut short is no record
                record = json.loads(file.read_text())
                self._records[record["name"]] = record

    def key(self, **inputs: Any) -> str:
        """The key of a pass's step that depends on `inputs`, as JSON, beside what all such steps depend on."""
        return key_of(all=self._inputs, step=inputs)

    def finished(self, name: str, key: str) -> Any:
        """The value of a step that was finished with this key and whose files are whole; else None, and it is gone."""
        record = self._records.get(name)
        if record is None:
            return None
        if record["key"] != key or not all(self._whole(f, sha) for f, sha in record["files"].items()):
            self._forget(name)
            return None
        self._claimed.add(name)
        return record["value"]

    def finish(
        self, name: str, key: str, files: Sequence[Path], value: Any, known: Mapping[Path, str] = MappingProxyType({})
    ) -> None:
        """Record a step whose files, all below the folder, are complete.

        Args:
            value: JSON, not None.
            known: sha256 of files that were hashed while they were written.
        """
        found = {str(f.relative_to(self.folder)): known.get(f) or digest(f) for f in files}
        record = {"name": name, "key": key, "files": found, "value": value}
        (self.folder / STEPS).mkdir(parents=True, exist_ok=True)
        write_json(self._record(name), record)
        self._records[name] = record
        self._claimed.add(name)

    def values(self, prefix: str) -> dict[str, Any]:
        """The values of all steps whose names begin so, whatever their keys."""
        return {name: record["value"] for name, record in self._records.items() if name.startswith(prefix)}

    def digests(self) -> dict[str, str]:
        """sha256 of every file that a step of this run made or found whole."""
        return {f: sha for name in self._claimed for f, sha in self._records[name]["files"].items()}

    def forget(self, name: str) -> None:
        """Remove a step, if there is one, and its files."""
        if name in self._records:
            self._forget(name)
            self._claimed.discard(name)

    def scratch(self, name: str) -> Path:
        """A file of a step that no bundle needs."""
        (self.folder / STEPS).mkdir(parents=True, exist_ok=True)
        return self.folder / STEPS / name

    def sweep(self) -> None:
        """Remove every file that no step made: what a run that was killed left behind."""
        known = {f for record in self._records.values() for f in record["files"]}
        known |= {str(self._record(name).relative_to(self.folder)) for name in self._records}
        for file in sorted(p for p in self.folder.rglob("*") if p.is_file() or p.is_symlink()):
            if str(file.relative_to(self.folder)) not in known:
                file.unlink()
        for path in sorted((p for p in self.folder.rglob("*") if p.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()

    def drop_unclaimed(self) -> None:
        """Forget the steps that this run did not ask for."""
        for name in self._records.keys() - self._claimed:
            self._forget(name)

    def _whole(self, file: str, sha256: str) -> bool:
        path = self.folder / file
        return path.is_file() and digest(path) == sha256

    def _forget(self, name: str) -> None:
        record = self._records.pop(name)
        self._record(name).unlink(missing_ok=True)
        for file in record["files"]:
            (self.folder / file).unlink(missing_ok=True)

    def _record(self, name: str) -> Path:
        return self.folder / STEPS / f"{name.replace('/', '~')}.json"


@contextmanager
def work_folder(folder: Path, *, fresh: bool) -> Iterator[Path]:
    """A folder beside `folder` to build in; it takes the place of `folder` when the block ends without an error.

    Steps that were finished, by a run that stopped or in the bundle that is being replaced, are in it; when the block
    ends with an error, it stays only if there are any.

    Raises:
        BundleError: another process works on the same output folder.
    """
    work = work_of(folder)
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BundleError(f"{folder}: another llmconv works on it; wait, or choose another --output") from error
    building, aside = work / "bundle", work / "replaced"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        if fresh:
            shutil.rmtree(building, ignore_errors=True)
        elif not building.is_dir() and (folder / STEPS).is_dir():
            _take_over(folder, building)
        building.mkdir(exist_ok=True)
        yield building
        if folder.is_dir():  # moved aside and not removed first: killed between, both bundles are still whole
            folder.replace(aside)
        building.replace(folder)
        shutil.rmtree(work, ignore_errors=True)
    finally:
        if not (building / STEPS).is_dir():
            shutil.rmtree(work, ignore_errors=True)
        lock.release()


def work_of(folder: Path) -> Path:
    """The folder beside an output folder that holds unfinished work."""
    return folder.with_name(f".{folder.name}.work")


def _take_over(bundle: Path, building: Path) -> None:
    """Copy the files of a finished bundle's steps. (ONNX's checker refuses weight files that are linked.)"""
    shutil.copytree(bundle / STEPS, building / STEPS)
    for record in (json.loads(f.read_text()) for f in (building / STEPS).glob("*.json")):
        for name in record["files"]:
            if (bundle / name).is_file():
                (building / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle / name, building / name)
