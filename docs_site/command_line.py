"""The commands with their arguments and options, as the command line itself knows them."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import typer

from llmconv.cli.main import app

NAME = "llmconv"


def page() -> str:
    """Every command, those that plugins bring included."""
    root = typer.main.get_command(app)
    lines = ["# The command line", "", _said(root)]
    lines += ["", *_parameters(_context(root, NAME, None))]
    for command, context in _commands(_context(root, NAME, None)):
        lines += ["", f"## {context.command_path}", "", _said(command), ""]
        lines += ["```text", " ".join([context.command_path, *command.collect_usage_pieces(context)]), "```", ""]
        lines += _parameters(context)
    return "\n".join(lines) + "\n"


def _commands(context: Any) -> Iterator[tuple[Any, Any]]:
    """Commands without commands below them, each with its context."""
    group = context.command
    for name in group.list_commands(context):
        inner = _context(group.get_command(context, name), name, context)
        if hasattr(inner.command, "list_commands"):
            yield from _commands(inner)
        else:
            yield inner.command, inner


def _context(command: Any, name: str, parent: Any) -> Any:
    """A plugin's command gives the context of the real one, which it imports."""
    return command.make_context(name, [], parent, resilient_parsing=True)


def _said(command: Any) -> str:
    return escape((command.help or "").strip(), quote=False)


def _parameters(context: Any) -> list[str]:
    lines = []
    for parameter in context.command.get_params(context):
        if (record := parameter.get_help_record(context)) and "--help" not in parameter.opts:
            written, meaning = record
            lines += [f"`{' '.join(written.split())}`", f":   {escape(' '.join(meaning.split()), quote=False)}", ""]
    return lines
