"""The recipes that come with llmconv."""

from __future__ import annotations

import shutil
from pathlib import Path

from llmconv.errors import RecipeError
from llmconv.naming import nearest

_HERE = Path(__file__).parents[1]  # the package llmconv


def folder() -> Path:
    """Where they lie: inside the wheel, or beside the package in a checkout."""
    installed = _HERE / "shipped_recipes"
    return installed if installed.is_dir() else _HERE.parent / "recipes"


def names() -> list[str]:
    """Their names."""
    return sorted(f.stem for f in folder().glob("*.toml"))


def description(name: str) -> str:
    """The comment in the first line of a recipe."""
    first = (folder() / f"{name}.toml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def copy(name: str, destination: Path) -> list[Path]:
    """Copy a recipe, and the folder of the same name that holds its data, into a folder.

    Raises:
        RecipeError: there is no such recipe, or a copy would overwrite something.
    """
    if name not in names():
        raise RecipeError(f"no recipe named '{name}'{nearest(name, names())}")
    sources = [p for p in (folder() / f"{name}.toml", folder() / name) if p.exists()]
    copies = [destination / p.name for p in sources]
    for target in copies:
        if target.exists():
            raise RecipeError(f"{target}: exists; copy to another folder or remove it")
    destination.mkdir(parents=True, exist_ok=True)
    for source, target in zip(sources, copies, strict=True):
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    return copies
