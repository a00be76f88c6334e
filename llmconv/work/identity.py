"""What a step's result depends on beside its options: the checkpoint, and the code that makes it."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

HEAD = 1 << 20  # bytes of each checkpoint file that are hashed: all of a configuration, the header of weights


def checkpoint_identity(folder: Path) -> list[list[Any]]:
    """Name, size, modification time and hash of the head of every file of a checkpoint."""
    found = []
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        with file.open("rb") as stream:
            head = hashlib.sha256(stream.read(HEAD)).hexdigest()
        found.append([file.name, file.stat().st_size, file.stat().st_mtime_ns, head])
    return found


def code_identity(*plugins: object) -> dict[str, list[str]]:
    """Versions and source hashes of the packages that these classes or instances come from, and of llmconv."""
    modules = {(p if isinstance(p, type) else type(p)).__module__ for p in plugins}
    return {name: _of_package(name) for name in sorted({"llmconv", *(m.partition(".")[0] for m in modules)})}


@cache
def _of_package(name: str) -> list[str]:
    hashed = hashlib.sha256()
    file = Path(str(import_module(name).__file__))
    for source in sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]:
        hashed.update(f"{source.relative_to(file.parent)}\n".encode() + source.read_bytes())
    versions = [f"{d} {version(d)}" for d in sorted(set(packages_distributions().get(name, [])))]
    return [*versions, hashed.hexdigest()]
