"""The rooms of the core and what each imports, as the diagram that docs/architecture.md shows.

Run: python tests/import_picture.py, and put what it prints into the document.
"""

from __future__ import annotations

from test_layers import CORE_FILES, ROW_OF, ROWS, imports, module_of, room

# What all may use, and what is only a start.
APART = {"cores", "errors", "files", "heap", "naming", "quantities", "__main__"}
IDS = {"graph": "graph_"}  # a word of Mermaid itself


def room_imports() -> dict[str, set[str]]:
    """Room -> the rooms that it imports; stubs of public names and what everything uses left out."""
    found: dict[str, set[str]] = {name: set() for name in ROW_OF if name not in APART}
    for file in CORE_FILES:
        own = room(module_of(file))
        if own in found and file.suffix == ".py":
            targets = {room(name) for name in imports(file) if name.startswith("llmconv.")}
            found[own] |= targets & found.keys() - {own}
    return found


def direct(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without what is reached through another room as well: an arrow drawn twice tells nothing."""

    def reach(name: str) -> set[str]:
        return edges[name].union(*(reach(other) for other in edges[name]))

    return {name: {o for o in into if not any(o in reach(p) for p in into - {o})} for name, into in edges.items()}


def picture() -> str:
    """A Mermaid diagram, a row of the house a line, the ground at the foot."""
    edges = direct(room_imports())
    lines = ["```mermaid", "flowchart BT"]
    for i, row in enumerate(ROWS.strip().splitlines()):
        rooms = [name for name in row.split() if name in edges]
        if rooms:
            lines.append(f"  subgraph row{i}[ ]")
            lines += [f'    {IDS[name]}["{name}"]' if name in IDS else f"    {name}" for name in rooms]
            lines.append("  end")
    arrows = [(below, name) for name in edges for below in sorted(edges[name])]
    lines += [f"  {IDS.get(below, below)} --> {IDS.get(name, name)}" for below, name in arrows]
    return "\n".join([*lines, "```"])


if __name__ == "__main__":
    print(picture())  # noqa: T201
