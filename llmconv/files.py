"""Files that are hashed in pieces and written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from llmconv.errors import CheckpointError

__all__ = ["check_no_pointer", "digest", "link", "stays_inside", "write_json"]
LFS = b"version https://git-lfs"  # what Git has in the place of a large file that was not fetched


def digest(file: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def link(file: Path, to: Path) -> None:
    """Give a file a second name, in whose place nothing may be left; a copy where the file system has no links."""
    to.unlink(missing_ok=True)
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def write_json(file: Path, value: Any) -> None:
    """Write JSON beside its place and move it there."""
    write_text(file, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text beside its place and move it there."""
    beside = file.with_name(f".{file.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


def stays_inside(name: str) -> bool:
    """Whether a name, as a file from elsewhere gives it, is that of something below a folder, on any system."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    inside = not posix.is_absolute() and not windows.anchor and ".." not in {*posix.parts, *windows.parts}
    return inside and bool(posix.parts) and "\0" not in name


def check_no_pointer(file: Path) -> None:
    """Whether a file is there itself.

    Raises:
        CheckpointError: it is what Git LFS has in its place.
    """
    try:
        with file.open("rb") as stream:
            pointer = stream.read(len(LFS)) == LFS
    except OSError:
        return  # which whoever opens it says
    if pointer:
        raise CheckpointError(f"{file}: a pointer of Git LFS, not the file itself; run 'git lfs pull' beside it")
