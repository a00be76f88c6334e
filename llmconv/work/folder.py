"""The folder that a bundle is built in, beside its place, by one process at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from llmconv.errors import BundleError
from llmconv.work.faults import reach
from llmconv.work.steps import STEPS, files_of

_BUILDING = "bundle"  # in the folder of unfinished work


@contextmanager
def work_folder(folder: Path, *, fresh: bool) -> Iterator[Path]:
    """A folder beside `folder` to build in; it takes the place of `folder` when the block ends without an error.

    Steps that were finished, by a run that stopped or in the bundle that is being replaced, are in it; when the block
    ends with an error, it stays only if there are any.

    Raises:
        BundleError: another process works on the same output folder.
    """
    with locked(folder):
        work = work_of(folder)
        building, aside = work / _BUILDING, work / "replaced"
        shutil.rmtree(aside, ignore_errors=True)
        if fresh:
            shutil.rmtree(building, ignore_errors=True)
        elif not building.is_dir() and (folder / STEPS).is_dir():
            _take_over(folder, building)
        building.mkdir(parents=True, exist_ok=True)
        try:
            yield building
            reach("before the bundle takes its place")
            if folder.is_dir():  # moved aside and not removed first: killed between, both bundles are still whole
                folder.replace(aside)
            reach("while the bundle takes its place")
            building.replace(folder)
        finally:
            if not (building / STEPS).is_dir():
                shutil.rmtree(work, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from working on an output folder.

    The lock lies beside the folder of unfinished work. Whoever has it removes it before letting it go, and whoever gets
    one that was removed meanwhile tries again: else one process might have the old file and another a new one.

    Raises:
        BundleError: another process works on it, or nothing can be written beside it.
    """
    file = _beside(folder, "lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()  # the lock would wait for a folder such as /proc, that does not take files, as for another process
    except OSError as error:
        why = f"cannot be written to: {error.strerror}"
        raise BundleError(f"{folder.parent}: {why}; choose another --output") from error
    descriptors: list[int] = []
    lock = FileLock(file, on_acquired=descriptors.append)
    try:
        lock.acquire(timeout=0)
        while not _is(file, descriptors[-1]):
            lock.release()
            lock.acquire(timeout=0)
    except Timeout as error:
        raise BundleError(f"{folder}: another llmconv works on it; wait, or choose another --output") from error
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows does not remove what is open
            file.unlink(missing_ok=True)
        lock.release()


def _is(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def work_of(folder: Path) -> Path:
    """The folder beside an output folder that holds unfinished work."""
    return _beside(folder, "work")


def with_steps(folder: Path) -> list[Path]:
    """Where steps lie that were finished for an output folder: in the bundle, and in work that was not finished."""
    return [found for found in (folder, work_of(folder) / _BUILDING) if (found / STEPS).is_dir()]


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _take_over(bundle: Path, building: Path) -> None:
    """Copy the files of a finished bundle's steps. (ONNX's checker refuses weight files that are linked.)"""
    shutil.copytree(bundle / STEPS, building / STEPS)
    for name in files_of(building):
        if (bundle / name).is_file():
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, building / name)
