"""The recipes that come with llmconv, and those that plugins bring."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from llmconv.errors import RecipeError
from llmconv.files import stays_inside
from llmconv.naming import nearest
from llmconv.plugins.listing import first_comment
from llmconv.plugins.registry import Registry

PREFIX = "shipped:"  # then the path of a text that comes with llmconv, in the folder of recipes
_HERE = Path(__file__).parents[1]  # the package llmconv


def folder() -> Path:
    """Where they lie: inside the wheel, or beside the package in a checkout."""
    installed = _HERE / "shipped_recipes"
    return installed if installed.is_dir() else _HERE.parent / "recipes"


def text(name: str) -> Path:
    """The file of a text that a recipe names as `shipped:PATH`.

    Raises:
        RecipeError: none of that name comes with llmconv.
    """
    path = name.removeprefix(PREFIX)
    if not stays_inside(path) or not (folder() / path).is_file():
        known = sorted(f"{PREFIX}{f.relative_to(folder()).as_posix()}" for f in folder().glob("*/*.txt"))
        raise RecipeError(f"no text named '{name}' comes with llmconv{nearest(name, known)}")
    return folder() / path


def names() -> list[str]:
    """Their names."""
    return sorted(f.stem for f in folder().glob("*.toml"))


def description(name: str) -> str:
    """The comment in the first line of a recipe that comes with llmconv."""
    return first_comment(folder() / f"{name}.toml")


def found(registry: Registry) -> list[tuple[str, Path]]:
    """Every recipe's distribution and file, by name."""
    own = [("llmconv", folder() / f"{name}.toml") for name in names()]
    return sorted([*own, *registry.registered_recipes], key=lambda one: one[1].stem)


def named(name: str, registry: Registry | None = None) -> Path:
    """The file of a recipe, of llmconv or of a plugin.

    Raises:
        RecipeError: there is none of that name, or several.
    """
    known = found(registry or Registry.load())
    files = [one for one in known if one[1].stem == name]
    if not files:
        raise RecipeError(f"no recipe named '{name}'{nearest(name, [file.stem for _, file in known])}")
    if len(files) > 1:
        (first, _), (second, file), *_ = files
        raise RecipeError(f"recipe '{name}' comes from both {first} and {second}; name a file, as {file}")
    return files[0][1]


def copy(name: str, destination: Path, registry: Registry | None = None) -> list[Path]:
    """Copy a recipe, the folder of the same name that holds its data, and texts that it shares with other recipes.

    Raises:
        RecipeError: there is no such recipe, or a copy would overwrite something.
    """
    recipe = named(name, registry)
    sources = [p for p in (recipe, recipe.with_suffix(""), *_shared_texts(recipe)) if p.exists()]
    copies = [destination / p.relative_to(recipe.parent) for p in sources]
    for target in copies:
        if target.exists():
            raise RecipeError(f"{target}: exists; copy to another folder or remove it")
    for source, target in zip(sources, copies, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    return copies


def _shared_texts(file: Path) -> list[Path]:
    """Texts that a recipe names and that lie in another recipe's folder."""
    recipe = tomllib.loads(file.read_text(encoding="utf-8"))
    texts = [recipe.get(section, {}).get("text") for section in ("calibration", "verify")]
    return [file.parent / x for x in texts if x and not x.startswith(PREFIX) and Path(x).parts[0] != file.stem]
