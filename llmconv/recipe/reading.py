"""TOML files that people write: read, and what is wrong with one said in a line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from llmconv.errors import RecipeError
from llmconv.naming import nearest
from llmconv.recipe.overrides import substitute


def text_of(file: Path) -> str:
    """A file's text, without a byte-order mark.

    Raises:
        RecipeError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read ({error})") from error


def values_of(text: str, where: str) -> dict[str, Any]:
    """The values of TOML, `${VAR}` read from the environment.

    Args:
        where: it comes from, in messages.

    Raises:
        RecipeError: it is no TOML, or a variable is not set.
    """
    try:
        return dict(substitute(tomllib.loads(text), ""))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: not TOML: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def first_message(error: ValidationError, root: type[BaseModel]) -> str:
    """What is wrong with the first value that is.

    Args:
        root: the class that validates the whole file.
    """
    first = error.errors()[0]
    place = ".".join(str(p) for p in first["loc"] if p != "[key]")
    if first["type"] == "extra_forbidden":
        section = _section(first["loc"][:-1], root)
        return f"unknown key '{place}'{nearest(str(first['loc'][-1]), section.model_fields if section else ())}"
    if first["type"] == "missing":
        return f"{place}: missing"
    message = first["msg"].removeprefix("Value error, ")
    said = first["type"] in ("value_error", "too_short") or isinstance(first["input"], dict)
    given = "" if said else f", not {first['input']!r}"
    return f"{place}: {message}{given}"


def _section(path: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel] | None:
    """The class that validates the section at a path; of a section of sections, the class of each."""
    if not path:
        return root
    found = [root.model_fields[str(path[0])].annotation]
    while found:
        candidate = found.pop(0)
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
        found += getattr(candidate, "__args__", ())
    return None
