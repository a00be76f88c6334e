"""The JSON Schema of recipes, by which editors complete and check them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from llmconv.errors import LlmconvError
from llmconv.plugins.options import helps, option_schema, required_options
from llmconv.plugins.registry import Kind, Registry
from llmconv.recipe import recipe
from llmconv.recipe.recipe import Recipe

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_NAMED: Mapping[str, tuple[str, Kind]] = {  # section -> the recipe's key of it, and what it names
    "PassEntry": ("passes", "pass"),
    "OnnxPassEntry": ("onnx_passes", "onnx_pass"),
    "BackendSection": ("backend", "backend"),
    "ExecutorSection": ("executor", "executor"),
}
_OWN = {"checkpoint", "adapters", "switchable"}  # of a source, which keys of [model] give


def json_schema(registry: Registry) -> dict[str, Any]:
    """The JSON Schema of a recipe, with the options of every registered pass, backend, executor and source.

    Raises:
        LlmconvError: a plugin's options have no schema.
    """
    schema, lifted = Recipe.model_json_schema(), {}
    definitions = schema["$defs"]
    if unused := _NAMED.keys() - definitions:
        raise LlmconvError(f"the schema of a recipe lacks {unused}")
    _describe(schema, Recipe)
    for name, definition in definitions.items():
        _describe(definition, getattr(recipe, name))

    def options(plugin: type) -> dict[str, Any]:
        found = option_schema(plugin)
        for option in found.values():
            lifted.update(option.pop("$defs", {}))  # where references look for them
        return found

    def entries(kind: Kind, about: str) -> dict[str, Any]:
        found = [_entry(name, entry.plugin, options, about) for name, entry in _sorted(registry, kind)]
        return {"oneOf": found} if found else _unknown(about)

    for name, (key, kind) in _NAMED.items():
        about = definitions.pop(name)["properties"]["name"]["description"]
        properties = schema["properties"]
        if "items" in properties[key]:
            properties[key]["items"] = entries(kind, about)
        else:
            properties[key] = entries(kind, about)
    model = definitions["ModelSection"]
    model["properties"]["source"]["examples"] = [name for name, _ in _sorted(registry, "source")]
    model["allOf"] = [_with_source(name, options(found.plugin)) for name, found in _sorted(registry, "source")]
    definitions["TargetSection"]["properties"]["name"]["examples"] = [
        known for chipset in registry.chipsets for known in (chipset.name, *chipset.devices)
    ]
    definitions |= lifted
    return {"$schema": DRAFT, **schema}


def _sorted(registry: Registry, kind: Kind) -> list[tuple[str, Any]]:
    return sorted(registry.of_kind(kind).items())


def _entry(name: str, plugin: type, options: Any, about: str) -> dict[str, Any]:
    said = first_paragraph(plugin)
    return {
        "type": "object",
        "title": name,
        "description": said,
        "properties": {"name": {"const": name, "description": said or about}, **options(plugin)},
        "required": ["name", *required_options(plugin)],
        "additionalProperties": False,
    }


def _unknown(about: str) -> dict[str, Any]:
    """What a recipe holds of a kind of which nothing is installed."""
    return {
        "type": "object",
        "description": "None is installed.",
        "properties": {"name": {"type": "string", "description": about}},
        "required": ["name"],
    }


def _with_source(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """What [model] holds where it names this source."""
    own = {key: option for key, option in options.items() if key not in _OWN}
    return {
        "if": {"properties": {"source": {"const": name}}, "required": ["source"]},
        "then": {"properties": {"options": {"type": "object", "properties": own, "additionalProperties": False}}},
    }


def _describe(schema: dict[str, Any], section: type[BaseModel]) -> None:
    """What the docstring says of a section, and of each of its keys."""
    schema["description"] = first_paragraph(section)
    said = helps(section)
    for key, found in schema["properties"].items():
        if key in said:
            found["description"] = said[key]


def first_paragraph(cls: type) -> str:
    """Of a class's own docstring, on one line."""
    return " ".join(inspect.cleandoc(vars(cls).get("__doc__") or "").partition("\n\n")[0].split())
