"""Changes to a recipe's values before they are validated: `${VAR}` from the environment, `--set a.b=value`."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Sequence
from typing import Any

from llmconv.errors import RecipeError
from llmconv.naming import nearest

_VARIABLE = re.compile(r"\$\{([^}]*)\}")


def substitute(value: Any, where: str) -> Any:
    """Replace `${VAR}` in every string.

    Raises:
        RecipeError: a variable is not set.
    """
    if isinstance(value, dict):
        return {key: substitute(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise RecipeError(f"{where}: environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return _VARIABLE.sub(lookup, value)


def override(values: dict[str, Any], assignments: Sequence[str]) -> None:
    """Apply `path=value` to a recipe's values in place; `passes.NAME.option` addresses a pass by its name.

    Raises:
        RecipeError: an assignment has no `=`, or its path names no pass of the recipe.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise RecipeError(f"--set {assignment}: write it as section.key=value")
        _assign(values, keys, _parse(text), assignment)


def quoted(text: object) -> str:
    """A text as the value of an assignment, whichever characters it holds."""
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def _parse(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _assign(values: dict[str, Any], keys: list[str], value: Any, assignment: str) -> None:
    place: Any = values
    for i, key in enumerate(keys[:-1]):
        place = _named(place, key, assignment) if isinstance(place, list) else place.setdefault(key, {})
        if not isinstance(place, dict | list):
            raise RecipeError(f"--set {assignment}: '{'.'.join(keys[: i + 1])}' is a value, not a section")
    if isinstance(place, list):
        raise RecipeError(f"--set {assignment}: name a pass and its option, passes.NAME.option=value")
    place[keys[-1]] = value


def _named(passes: list[Any], name: str, assignment: str) -> Any:
    names = [p.get("name") for p in passes if isinstance(p, dict)]
    if name not in names:
        raise RecipeError(f"--set {assignment}: the recipe has no pass '{name}'{nearest(name, map(str, names))}")
    return passes[names.index(name)]
