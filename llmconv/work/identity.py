"""What a step's result depends on beside its options: the checkpoint, and the code that makes it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import platform
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    entry_points,
    requires,
    version,
)
from pathlib import Path
from types import FunctionType
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from llmconv.plugins.frame import installed

HEAD = 1 << 20  # bytes of each checkpoint file that are hashed: all of a configuration, the header of weights


def checkpoint_identity(checkpoint: Path) -> list[list[Any]]:
    """Name, size, modification time and hash of the head of every file of a checkpoint.

    Args:
        checkpoint: a folder; or a file, which may be the first of a set: others of its kind beside it count as well.
    """
    files = checkpoint.iterdir() if checkpoint.is_dir() else checkpoint.parent.glob(f"*{checkpoint.suffix}")
    found = []
    for file in sorted(p for p in files if p.is_file()):
        with file.open("rb") as stream:
            head = hashlib.sha256(stream.read(HEAD)).hexdigest()
        found.append([file.name, file.stat().st_size, file.stat().st_mtime_ns, head])
    return found


def code_identity(*plugins: object) -> dict[str, list[str]]:
    """Versions and source hashes of all that these classes, functions or instances come with, and of llmconv.

    That is every module of their distribution; where none was installed, of their package, or beside their module.
    Code that has no file, of a notebook or a shell, is known by its source; where that is not known either, it is
    never the same as another.
    """
    found = {"llmconv": _of_package("llmconv", _file_of("llmconv"))}
    for plugin in plugins:
        code = plugin if isinstance(plugin, type | FunctionType) else type(plugin)
        package, file = code.__module__.partition(".")[0], _file_of(code.__module__)
        if file is not None:
            found[package] = _of_package(package, file)
        else:
            found[f"{code.__module__}.{code.__qualname__}"] = _of_source(code)
    return dict(sorted(found.items()))


def environment() -> dict[str, str]:
    """What must be the same wherever a task runs: Python, and llmconv, its plugins and what they require.

    Versions, and hashes of all modules of llmconv and of plugins.
    """
    entries = entry_points(group="llmconv")
    found = {"Python": platform.python_version()}
    for name in {"llmconv", *(entry.dist.name for entry in entries if entry.dist)}:
        found[name] = version(name)
        for requirement in requires(name) or ():
            required = re.match(r"[\w.-]+", requirement)
            if required and "extra ==" not in requirement:
                with contextlib.suppress(PackageNotFoundError):  # for another system
                    found[required[0]] = version(required[0])
    for package in {"llmconv", *(entry.value.partition(".")[0].partition(":")[0] for entry in entries)}:
        file = getattr(importlib.import_module(package), "__file__", None)
        found[f"code of {package}"] = _of_package(package, Path(file).resolve() if file else None)[-1][:12]
    return dict(sorted(found.items()))


def _file_of(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file is not None and Path(file).is_file() else None


@cache
def _of_package(name: str, file: Path | None) -> list[str]:
    """Versions, and the hash of all modules.

    Args:
        name: of a top-level package or module.
        file: of a module in it.
    """
    distributions = sorted({found.name for found in installed().get(name, ())})
    modules = {at: source for d in distributions for at, source in _modules_of(d)}
    if file not in modules.values():  # installed to be edited, or not at all
        modules = dict(_modules_around(name, file))
    return [*(f"{d} {version(d)}" for d in distributions), _hashed(tuple(sorted(modules.items())))]


@cache
def _hashed(modules: tuple[tuple[str, Path], ...]) -> str:
    """Of all modules together; a package of many plugins is read once."""
    hashed = hashlib.sha256()
    for at, source in modules:
        hashed.update(f"{at}\n".encode() + source.read_bytes())
    return hashed.hexdigest()


def _modules_of(name: str) -> Iterable[tuple[str, Path]]:
    """The modules that a distribution has installed."""
    for file in distribution(name).files or ():
        at = Path(str(file.locate())).resolve()
        if file.suffix == ".py" and at.is_file():
            yield str(file), at


def _modules_around(name: str, file: Path | None) -> Iterable[tuple[str, Path]]:
    """The modules of a package, in all its folders; or a module and those beside it."""
    folders = [Path(folder) for folder in getattr(sys.modules.get(name), "__path__", ())]
    for folder in folders:
        yield from ((str(source.relative_to(folder)), source) for source in folder.rglob("*.py"))
    if not folders and file is not None:
        yield from ((source.name, source) for source in {file, *file.parent.glob("*.py")})


_NAMELESS: WeakKeyDictionary[object, str] = WeakKeyDictionary()  # code -> what no other code, or process, has


def _of_source(code: type | FunctionType) -> list[str]:
    try:
        return [hashlib.sha256(inspect.getsource(code).encode()).hexdigest()]
    except (OSError, TypeError):
        return [repr(code), _NAMELESS.setdefault(code, uuid4().hex)]
