"""Finished steps of a conversion, on disk: a second run goes on where the first one stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from llmconv.files import digest, stays_inside, write_json
from llmconv.work.faults import reach

STEPS = ".steps"  # folder of the records, in the folder of the files
LEDGER = ".ledger"  # how the files there end that are no records, and that only their owner changes


def key_of(**inputs: Any) -> str:
    """The key of a step that depends on `inputs` alone, as JSON."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def _checked(file: str) -> str:
    if not stays_inside(file):
        raise ValueError("not a file below the folder")
    return file


class _Record(BaseModel):
    """A finished step, as it lies on disk: its files are below the folder, whoever wrote the record."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str
    key: str
    files: dict[Annotated[str, AfterValidator(_checked)], str]  # name -> sha256
    value: Any


class Steps:
    """Steps over a folder; a step is known by name, and holds as long as its key is the same and its files are whole.

    Args:
        folder: holds the files of the steps, and the records in `.steps`.
        inputs: what every step that passes make depends on, as JSON.
        others: folders of other conversions, whose steps are copied where they are the same; nothing of them changes.

    Attributes:
        copied: names of the steps that came so.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any], others: Sequence[Path] = ()) -> None:
        self.folder, self._inputs, self._others = folder, dict(inputs), others
        self.copied: list[str] = []
        self._records = {record.name: record for record in _records(folder)}
        self._asked: set[str] = set()  # names of steps that this run has made or found

    def key(self, *, graphs: str | None = None, **inputs: Any) -> str:
        """The key of a pass's step that depends on `inputs`, as JSON, beside what all such steps depend on.

        Args:
            graphs: the signature of what the step looks at, where that is less than all graphs of the recipe.
        """
        common = self._inputs if graphs is None else {**self._inputs, "graphs": graphs}
        return key_of(all=common, step=inputs)

    def once(self, name: str, key: str, files: Sequence[Path], work: Callable[[], Any]) -> Any:
        """Do a piece of work, unless it is done; returns its value.

        Args:
            files: all that the work makes, below the folder.
            work: returns the value: JSON, not None.
        """
        value = self.finished(name, key)
        if value is None:
            value = work()
            self.finish(name, key, files, value)
        return value

    def holds(self, name: str, key: str) -> Any:
        """The value of a step that was finished with this key and whose files are whole; else None. Changes nothing."""
        record = self._records.get(name)
        if record is None or record.key != key:
            return None
        return record.value if all(self._whole(f, sha) for f, sha in record.files.items()) else None

    def finished(self, name: str, key: str) -> Any:
        """As `holds`; a step that does not hold is removed, with its files, and copied from where it does."""
        value = self.holds(name, key)
        if value is not None:
            self._asked.add(name)
            return value
        self.forget(name)
        return next((made for other in self._others if (made := self._copy(other, name, key)) is not None), None)

    def finish(
        self, name: str, key: str, files: Sequence[Path], value: Any, known: Mapping[Path, str] = MappingProxyType({})
    ) -> None:
        """Record a step whose files, all below the folder, are complete.

        Args:
            value: JSON, not None.
            known: sha256 of files that were hashed while they were written.
        """
        reach(f"before {name}")
        found = {f.relative_to(self.folder).as_posix(): known.get(f) or digest(f) for f in files}
        record = _Record(name=name, key=key, files=found, value=value)
        (self.folder / STEPS).mkdir(parents=True, exist_ok=True)
        write_json(_file_of(self.folder, name), record.model_dump())
        self._records[name] = record
        self._asked.add(name)
        reach(f"after {name}")

    def digests(self) -> dict[str, str]:
        """sha256 of every file that a step of this run made or found whole."""
        return {f: sha for name in self._asked for f, sha in self._records[name].files.items()}

    def forget(self, name: str) -> None:
        """Remove a step, if there is one, and its files."""
        record = self._records.pop(name, None)
        self._asked.discard(name)
        if record is not None:
            _file_of(self.folder, name).unlink(missing_ok=True)
            for file in record.files:
                (self.folder / file).unlink(missing_ok=True)

    def scratch(self, name: str) -> Path:
        """A file of a step that no bundle needs."""
        (self.folder / STEPS).mkdir(parents=True, exist_ok=True)
        return self.folder / STEPS / name

    def ledger(self, name: str) -> Path:
        """A file beside the records, for notes on work that is under way elsewhere; its owner alone changes it."""
        return self.folder / STEPS / f"{name}{LEDGER}"

    def sweep(self) -> None:
        """Remove every file that no step made: what a run that was killed left behind."""
        known = {self.folder / file for record in self._records.values() for file in record.files}
        known |= {_file_of(self.folder, name) for name in self._records}
        known |= set((self.folder / STEPS).glob(f"*{LEDGER}"))
        for file in sorted(p for p in self.folder.rglob("*") if p.is_file() or p.is_symlink()):
            if file not in known:
                file.unlink()
        for path in sorted((p for p in self.folder.rglob("*") if p.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()

    def drop_unasked(self) -> None:
        """Forget the steps that this run did not ask for."""
        for name in self._records.keys() - self._asked:
            self.forget(name)

    def _copy(self, other: Path, name: str, key: str) -> Any:
        """Take over a step of another folder; its value, or None where that has none of this key whose files are whole.

        (Copies, not links: ONNX's checker refuses weight files that are linked.)
        """
        record = _record(other, name)
        if record is None or record.key != key:
            return None
        files = [self.folder / file for file in record.files]
        for file, to in zip(record.files, files, strict=True):
            to.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(other / file, to)
        if not all(self._whole(*made) for made in record.files.items()):
            for to in files:
                to.unlink(missing_ok=True)
            return None
        known = {self.folder / file: sha for file, sha in record.files.items()}
        self.finish(name, key, files, record.value, known)
        self.copied.append(name)
        return record.value

    def _whole(self, file: str, sha256: str) -> bool:
        path = self.folder / file
        return path.is_file() and digest(path) == sha256


def files_of(folder: Path) -> Iterator[str]:
    """The files of the steps that a folder has records of."""
    for record in _records(folder):
        yield from record.files


def _records(folder: Path) -> Iterator[_Record]:
    """The records of a folder; one that is damaged, or not in its own file, is no record: its step is not finished."""
    for file in sorted((folder / STEPS).glob("*.json")):
        record = _read(file)
        if record is not None and _file_of(folder, record.name) == file:
            yield record


def _record(folder: Path, name: str) -> _Record | None:
    record = _read(_file_of(folder, name))
    return record if record is not None and record.name == name else None


def _read(file: Path) -> _Record | None:
    try:
        record = _Record.model_validate(json.loads(file.read_text()))
    except (OSError, ValueError):
        return None
    return record if record.value is not None else None


def _file_of(folder: Path, name: str) -> Path:
    return folder / STEPS / f"{name.replace('/', '~')}.json"
