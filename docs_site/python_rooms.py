"""A page for each room of llmconv that programs and plugins import, with the names of its `__all__`."""

from __future__ import annotations

import importlib
from pathlib import Path

import llmconv


def rooms() -> list[str]:
    """Dotted names of the modules that list what they export."""
    root = Path(llmconv.__file__).parent
    stubs = [stub.parent.relative_to(root.parent).parts for stub in sorted(root.rglob("__init__.pyi"))]
    return [*(".".join(parts) for parts in stubs), "llmconv.cores", "llmconv.files", "llmconv.heap", "llmconv.target"]


def pages() -> dict[str, str]:
    """Path in the site -> Markdown, which mkdocstrings fills with signatures and docstrings."""
    return {f"reference/python/{room}.md": _page(room) for room in rooms()}


def _page(room: str) -> str:
    module = importlib.import_module(room)
    lines = [f"# {room}", "", (module.__doc__ or "").strip()]
    for name in sorted(module.__all__, key=str.casefold):
        lines += ["", f"::: {room}.{name}"]
    return "\n".join(lines) + "\n"
