"""Everything that is shown of a bundle, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmconv.bundle.bundle import Bundle
from llmconv.report import figures
from llmconv.report.figures import Section, Table
from llmconv.report.speed import speed
from llmconv.report.sqnr import precision


def sections(bundle: Bundle) -> list[Section]:
    """The sections that have something to show; tables without rows are left out."""
    found = (
        ("parts", "Parts", figures.parts(bundle)),
        ("proof", "Proof", figures.proof(bundle)),
        ("precision", "Precision", precision(bundle)),
        ("memory", "Memory", figures.memory(bundle)),
        ("speed", "Speed", speed(bundle)),
        ("binaries", "Binaries", figures.compiled(bundle)),
        ("passes", "Passes", figures.passes(bundle)),
        ("recipe", "Recipe and origin", origin(bundle)),
    )
    made = [Section(key, title, tuple(t for t in tables if t.rows)) for key, title, tables in found]
    return [section for section in made if section.tables]


def origin(bundle: Bundle) -> Iterator[Table]:
    """The recipe key by key, and versions."""
    rows = tuple(_entries(bundle.manifest["recipe"]))
    yield Table("The recipe", ("key", "value"), rows, "given", 2)
    versions = tuple(sorted(bundle.manifest["versions"].items()))
    yield Table("Versions", ("package", "version"), versions, "given", 2)


def _entries(recipe: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for section, value in recipe.items():
        if section == "passes":
            for i, entry in enumerate(value, 1):
                options = " ".join(f"{key} = {item}" for key, item in entry.items() if key != "name")
                yield f"pass {i}", f"{entry['name']} {options}".rstrip()
        else:
            yield from _flat(section, value)


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    elif value is not None:
        yield key, str(value)
