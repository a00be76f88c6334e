"""A plugin's options: the fields of its class, as a recipe writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from llmconv.errors import RecipeError
from llmconv.naming import nearest


def validated(plugin: type, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options with the types that a plugin's fields have.

    Args:
        where: names the plugin in messages.

    Raises:
        RecipeError: an option is unknown, missing, or of the wrong type.
    """
    known, hints = [f.name for f in _options(plugin)], get_type_hints(plugin)
    for key in options:
        if key not in known:
            raise RecipeError(f"{where}: no option '{key}'{nearest(key, known)}")
    for key in required_options(plugin):
        if key not in options:
            raise RecipeError(f"{where}: option '{key}' is missing")
    return {key: _validated(hints[key], value, f"{where}: option '{key}'") for key, value in options.items()}


def _validated(hint: Any, value: Any, where: str) -> Any:
    try:
        return TypeAdapter(hint).validate_json(json.dumps(value, default=str), strict=True)  # "2" and true are not 2
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f".{p}" for p in first["loc"] if isinstance(p, str) and p in str(value))
        raise RecipeError(f"{where}{place}: {first['msg'].lower()}, not {value!r}") from error


def option_schema(plugin: type) -> dict[str, Any]:
    """JSON Schemas of a plugin's options by name, with defaults and what the docstrings say."""
    hints, said, found = get_type_hints(plugin), helps(plugin), {}
    for f in _options(plugin):
        found[f.name] = TypeAdapter(hints[f.name]).json_schema()
        if f.name in said:
            found[f.name]["description"] = said[f.name]
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if default is not MISSING:
            found[f.name]["default"] = to_jsonable_python(default, fallback=str)
    return found


def helps(cls: type) -> dict[str, str]:
    """Name -> text of the lines under Attributes, in the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = (vars(base).get("__doc__") or "").partition("Attributes:")
        for name, text in re.findall(r"^\s+(\w+): (.*(?:\n\s{12,}.*)*)", section, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def required_options(plugin: type) -> Iterable[str]:
    """Names of the options without a default."""
    return [f.name for f in fields(plugin) if f.default is MISSING and f.default_factory is MISSING]


def _options(plugin: type) -> list[Field[Any]]:
    """The fields that a recipe may set: whoever makes the plugin sets those with an underscore."""
    return [f for f in fields(plugin) if f.init and not f.name.startswith("_")]
