"""A recipe as it is being chosen: sections of lines, each with its reason, written as TOML with comments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Line:
    """A key, its value, and why it has it; the reason becomes a comment."""

    key: str
    value: Any
    why: str = ""

    def __str__(self) -> str:
        return f"{self.key} = {_toml(self.value)}" + (f" # {self.why}" if self.why else "")


@dataclass(frozen=True)
class Section:
    """A table of a recipe.

    Attributes:
        name: dotted, e.g. "graphs.prompt"; "passes" for one pass more; "" for keys outside of tables.
    """

    name: str
    lines: tuple[Line, ...]

    def __str__(self) -> str:
        header = f"[[{self.name}]]" if self.name == "passes" else f"[{self.name}]"
        return "\n".join([*([header] if self.name else []), *map(str, self.lines)])

    @property
    def path(self) -> str:
        """As `--set` addresses it: a pass goes by its name."""
        return f"passes.{self.lines[0].value}" if self.name == "passes" else self.name


@dataclass(frozen=True)
class Draft:
    """A recipe.

    Attributes:
        label: what tells it from other drafts of the same model, e.g. "weights of 4 bits".
        notes: what whoever converts the model should hear.
        title: the model's name.
    """

    label: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    title: str = ""

    def __str__(self) -> str:
        graphs = ", ".join(f"{n.rpartition('.')[2]} {v['ar']} of {v['context']}" for n, v in self.graphs().items())
        lines = [
            f"# {self.title}: {graphs}, {self.label}.",
            "#",
            "# Chosen by llmconv; what stands behind a line says why.",
        ]
        lines += ["#", *(f"# {note}." for note in self.notes)] if self.notes else []
        return "\n\n".join(["\n".join(lines), *map(str, self.sections)]) + "\n"

    def graphs(self) -> dict[str, dict[str, Any]]:
        """The keys of each graph, by the path of its section."""
        return {s.path: {x.key: x.value for x in s.lines} for s in self.sections if s.name.startswith("graphs.")}

    def choices(self) -> Iterator[tuple[str, Any, str]]:
        """Every value but names of passes: where it stands, the value, the reason."""
        for section in self.sections:
            yield from ((f"{section.path}.{x.key}".lstrip("."), x.value, x.why) for x in section.lines)

    def noting(self, *notes: str) -> Draft:
        """With more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def changed(self, setting: str, value: Any, why: str) -> Draft:
        """With another value at a dotted place, such as `passes.split_model.parts`."""
        path, _, key = setting.rpartition(".")

        def change(section: Section) -> Section:
            if section.path != path:
                return section
            lines = (x for x in section.lines if x.key != key)
            return replace(section, lines=(*lines, Line(key, value, why)))

        return replace(self, sections=tuple(map(change, self.sections)))


def _toml(value: Any) -> str:
    """Strings, numbers, switches, lists and inline tables; JSON's strings are TOML's."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else json.dumps(key, ensure_ascii=False)
