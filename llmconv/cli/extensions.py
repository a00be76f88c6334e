"""Commands that plugins bring: named in the entry-point group `llmconv.commands`, imported when called."""

from __future__ import annotations

import logging
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from llmconv.errors import PluginError
from llmconv.plugins.frame import blame
from llmconv.plugins.selection import selected

logger = logging.getLogger(__name__)
GROUP = "llmconv.commands"  # command -> a typer app


class ExtensibleGroup(TyperGroup):
    """The commands of an app, and behind them those of plugins; a plugin cannot replace a command.

    (Contexts and commands are Any: typer brings its own click or uses the installed one, depending on its version.)
    """

    @cached_property
    def _entries(self) -> list[EntryPoint]:
        """Those of plugins: read once, since that opens a file of every installed distribution."""
        return selected(entry_points(group=GROUP))[0]

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, read from the metadata of installed distributions."""
        own = super().list_commands(ctx)
        return [*own, *sorted({entry.name for entry in self._entries} - set(own))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command; a plugin's is not imported yet."""
        found = super().get_command(ctx, cmd_name)
        entries = [entry for entry in self._entries if entry.name == cmd_name]
        brought = " and ".join(_distribution(entry) for entry in entries)
        if found is not None and entries:
            logger.warning("command '%s' of %s is not used: llmconv has one of that name", cmd_name, brought)
        elif len(entries) > 1:
            raise PluginError(f"command '{cmd_name}' comes from both {brought}; uninstall one")
        return found if found is not None or not entries else _Deferred(entries[0])


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown distribution"


class _Deferred(TyperCommand):
    """A plugin's command that is imported when its arguments are read."""

    def __init__(self, entry: EntryPoint) -> None:
        super().__init__(
            entry.name, help=f"Commands that {_distribution(entry)} brings; see 'llmconv {entry.name} --help'."
        )
        self._entry = entry

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which then runs in this one's place."""
        try:
            command = typer.main.get_command(self._entry.load())
        except Exception as error:  # a third party's module may raise anything
            why = blame(self._entry.module, error)
            raise PluginError(f"command '{self.name}' cannot be loaded: {why}") from error
        return command.make_context(info_name, args, parent, **extra)
