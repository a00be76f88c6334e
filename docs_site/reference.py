"""Reference pages written from what is registered: recipe, plugins, ops, families, chipsets."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from llmconv import Registry
from llmconv.graph import ELEMENTWISE, MOVEMENT, NORMS
from llmconv.plugins.listing import Brought, Option, listed
from llmconv.recipe import shipped
from llmconv.recipe.schema import json_schema

Schema = Mapping[str, Any]


def recipe(registry: Registry) -> str:
    """Sections and keys, from the JSON Schema, and the recipes that come with llmconv."""
    schema = json_schema(registry)
    lines = ["# The recipe", "", str(schema["description"]), ""]
    lines += ["From the schema that `llmconv recipe schema` prints; [Recipes](../recipes.md) explains.", ""]
    for key, section in schema["properties"].items():
        lines += _section(key, section, schema)
    lines += ["## Recipes that come with llmconv", "", "`llmconv recipe copy NAME` brings one.", ""]
    for name in shipped.names():
        lines += [f"`{name}`", f":   {shipped.description(name)}", ""]
    return "\n".join(lines)


def _section(key: str, section: Schema, schema: Schema) -> Iterator[str]:
    """One key at the top of a recipe, and the keys below it."""
    inner = _inner(section, schema)
    if "oneOf" in inner:
        yield from (f"## `{_written(key, section)}`", "", _sentence(str(section.get("description", ""))), "")
        names = ", ".join(f"`{one['title']}`" for one in inner["oneOf"])
        yield f"`name`, and the [options of that plugin](plugins.md#{ANCHORS[key]}): {names}."
        yield ""
    elif "properties" in inner:
        yield from (f"## `{_written(key, section)}`", "", str(inner["description"]), "")
        for name, found in inner["properties"].items():
            yield from _key(name, found, name in inner.get("required", ()))
    else:
        yield from (f"## `{key}`", "", _sentence(str(section.get("description", ""))), "")


ANCHORS = {"passes": "passes", "onnx_passes": "onnx-passes", "backend": "backends", "executor": "executors"}


def _inner(section: Schema, schema: Schema) -> Schema:
    """What holds the keys below: of a table, of one in a table of tables, or of one in a list."""
    if "additionalProperties" in section and isinstance(section["additionalProperties"], dict):
        return _inner(section["additionalProperties"], schema)
    if "patternProperties" in section:
        return _inner(next(iter(section["patternProperties"].values())), schema)
    if "items" in section:
        return _inner(section["items"], schema)
    for place in (section, *section.get("anyOf", ())):
        if "$ref" in place:
            return dict(schema["$defs"][place["$ref"].rpartition("/")[2]])
    return section


def _written(key: str, section: Schema) -> str:
    if "items" in section:
        return f"[[{key}]]"
    return f"[{key}.NAME]" if key == "graphs" else f"[{key}]"


def _key(name: str, found: Schema, required: bool) -> Iterator[str]:
    default = "must be given" if required else f"default `{json.dumps(found['default'])}`" if "default" in found else ""
    default = "" if default == "default `null`" else default
    yield f"`{name}`"
    yield f":   {_sentence(str(found.get('description', '')))} *{', '.join(filter(None, (_type(found), default)))}*"
    yield ""


def _type(found: Schema) -> str:
    if "anyOf" in found:
        return " or ".join(_type(one) for one in found["anyOf"] if one.get("type") != "null")
    return {"object": "table"}.get(found.get("type", ""), str(found.get("format") or found.get("type") or "any"))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


KINDS = {
    "pass": "Passes",
    "source": "Sources",
    "quantizer": "Quantizers",
    "scheme": "Schemes",
    "onnx_pass": "ONNX passes",
    "backend": "Backends",
    "runtime": "Runtimes",
    "exporter": "Exporters",
    "evaluator": "Evaluators",
    "chooser": "Choosers",
    "executor": "Executors",
    "observer": "Observers",
    "checkup": "Checkups",
}


def plugins(registry: Registry) -> str:
    """What llmconv brings itself, kind by kind, with options."""
    brought = sorted(
        (found for one in listed(registry) for found in one.brings if found.kind in KINDS),
        key=lambda found: (list(KINDS).index(found.kind), found.name),
    )
    lines = ["# Passes and other plugins", "", "What comes with llmconv; `llmconv plugins` lists yours as well."]
    for kind, entries in groupby(brought, lambda found: found.kind):
        lines += ["", f"## {KINDS[kind]}"]
        for entry in entries:
            lines += ["", *_brought(entry)]
            if kind == "pass":
                lines += _order(registry.find("pass", entry.name).plugin)
    return "\n".join(lines) + "\n"


def _brought(entry: Brought) -> Iterator[str]:
    yield from (f"### {entry.name}", "", entry.about, "")
    for option in entry.options:
        yield from _option(option)


def _order(plugin: Any) -> Iterator[str]:
    """What must come earlier in a recipe."""
    for said, names in (("Needs", plugin.needs), ("Comes after", plugin.runs_after)):
        if names:
            yield from (f"{said} {', '.join(f'`{name}`' for name in names)}.", "")


def _option(option: Option) -> Iterator[str]:
    default = "must be given" if option.required else f"default `{option.default!r}`"
    yield f"`{option.name}`"
    yield f":   {_sentence(option.help)} *{option.type}, {default}*"
    yield ""


def ops(registry: Registry) -> str:
    """Every ATen op with a lowering, and what it becomes."""
    lines = ["# Ops and lowerings", "", "What a graph may hold when it is lowered; passes bring other ops to these."]
    lines += ["`llmconv plan` says which op of a recipe has no lowering.", ""]
    lines += ["| op | kind | ONNX |", "|---|---|---|"]
    for op in sorted(registry.lowerings, key=str):
        function = registry.lowerings[op]
        lines.append(f"| `{op}` | {_kind(op)} | {_emitted(function)} |")
    return "\n".join(lines) + "\n"


def _kind(op: Any) -> str:
    kinds = {"movement": MOVEMENT, "elementwise": ELEMENTWISE, "norm": NORMS}
    return ", ".join(name for name, those in kinds.items() if op in those)


def _emitted(function: Any) -> str:
    """The ops of ONNX that a lowering's own text names; its docstring where it emits none."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    emitted = [call.args[0] for call in calls if call.func.attr == "emit" and call.args]  # type: ignore[attr-defined]
    if not emitted:
        return (inspect.getdoc(function) or "").partition("\n")[0]
    named = [f"`{found.value}`" for found in emitted if isinstance(found, ast.Constant)]
    return ", ".join(named) or "its namesake"


def families(registry: Registry) -> str:
    """Every family of models that the sources know."""
    lines = ["# Families of models", "", "By `model_type` of `config.json`, and what the test of each compares with."]
    lines += ["", "| family | `model_type` | compared with |", "|---|---|---|"]
    for _, family in sorted(registry.registered_families, key=lambda found: found[1].types):
        said = (family.__doc__ or "").strip().partition("\n")[0]
        lines.append(f"| {said} | {', '.join(f'`{kind}`' for kind in family.types)} | {family.compared_with} |")
    return "\n".join(lines) + "\n"


def chipsets(registry: Registry) -> str:
    """Every chipset, and the devices that carry it."""
    lines = ["# Chipsets and devices", "", "A recipe's `target.name` is any name in this table."]
    lines += ["", "| chipset | part | HTP | devices |", "|---|---|---|---|"]
    for chip in registry.chipsets:
        lines.append(f"| {chip.name} | {chip.model} | v{chip.htp_arch} | {', '.join(chip.devices)} |")
    return "\n".join(lines) + "\n"
