"""What is installed: each distribution, its state, and all that it brings with its options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from llmconv.plugins.options import helps, option_schema
from llmconv.plugins.registry import KINDS, Registry


@dataclass(frozen=True)
class Option:
    """One option of a plugin.

    Attributes:
        type: JSON Schema's name of it, or of each that it may be.
        default: None of one that must be given.
        help: what the class's docstring says under Attributes.
    """

    name: str
    type: str
    required: bool
    default: Any
    help: str


@dataclass(frozen=True)
class Brought:
    """One thing that a distribution registers."""

    kind: str
    name: str
    about: str
    options: tuple[Option, ...] = ()


@dataclass(frozen=True)
class Listed:
    """One distribution.

    Attributes:
        state: loaded, broken, or off.
        broken: what of it cannot be used -> why.
    """

    distribution: str
    version: str
    state: str
    broken: dict[str, str] = field(default_factory=dict)
    brings: tuple[Brought, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a default that JSON does not know is written as Python has it."""
        return asdict(self)


def listed(registry: Registry) -> list[Listed]:
    """Every distribution that brings a plugin, by name."""
    brought: dict[str, list[Brought]] = {loaded.distribution: [] for loaded in registry.loaded}
    for distribution, found in _brought(registry):
        brought[distribution].append(found)
    wrong: dict[str, dict[str, str]] = {}
    for where, why in registry.broken.items():  # after the above, which finds more
        distribution, _, what = where.partition(" (")
        wrong.setdefault(distribution, {})[what.removesuffix(")")] = why
    states = {
        **dict.fromkeys(registry.off, "off"),
        **dict.fromkeys(brought, "loaded"),
        **dict.fromkeys(wrong, "broken"),
    }
    return [
        Listed(*_split(name), state, wrong.get(name, {}), tuple(brought.get(name, ())))
        for name, state in sorted(states.items())
    ]


def _split(distribution: str) -> tuple[str, str]:
    name, _, version = distribution.partition(" ")
    return name, version


def _brought(registry: Registry) -> Iterator[tuple[str, Brought]]:
    for kind in KINDS:
        for entry in registry.registered(kind):
            yield (
                entry.distribution,
                Brought(kind, entry.name, _first_line(entry.plugin), tuple(_options(entry.plugin))),
            )
    for distribution, family in registry.registered_families:
        yield distribution, Brought("family", ", ".join(family.types), _first_line(family))
    for distribution, observer in registry.registered_observers:
        yield distribution, Brought("observer", observer.__name__, _first_line(observer))
    for distribution, checkup in registry.registered_checkups:
        yield distribution, Brought("checkup", checkup.__name__, _first_line(checkup))
    for distribution, file in registry.registered_recipes:
        yield distribution, Brought("recipe", file.stem, first_comment(file))
    for distribution, op in registry.registered_lowerings:
        yield distribution, Brought("lowering", str(op), "")
    for distribution, chipset in registry.registered_chipsets:
        yield distribution, Brought("chipset", chipset.name, ", ".join(chipset.devices))


def first_comment(recipe: Path) -> str:
    """What a recipe's file says of itself in its first line."""
    first = recipe.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _first_line(plugin: object) -> str:
    return " ".join((plugin.__doc__ or "").strip().partition("\n\n")[0].split())


def _options(plugin: type) -> Iterator[Option]:
    said, schemas = helps(plugin), option_schema(plugin)
    for f in (f for f in fields(plugin) if f.name in schemas):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        required = default is MISSING
        yield Option(f.name, _type(schemas[f.name]), required, None if required else default, said.get(f.name, ""))


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(repr(one) for one in schema["enum"])
    return str(schema.get("format") or schema.get("type") or "any")
