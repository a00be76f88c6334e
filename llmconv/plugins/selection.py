"""Which of the installed plugins are loaded: all, or those that the environment names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution

from llmconv.errors import PluginError

VARIABLE = "LLMCONV_PLUGINS"  # distributions with commas between; set to nothing, llmconv's own alone
_OWN = "llmconv"


def selected(entries: Iterable[EntryPoint]) -> tuple[list[EntryPoint], list[EntryPoint]]:
    """Entry points that are to be loaded, and those that are switched off.

    Raises:
        PluginError: the environment names a distribution that is not installed.
    """
    entries = sorted(entries, key=lambda entry: (_distribution(entry), entry.name))
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return entries, []
    wanted = {_canonical(name.strip()) for name in asked.split(",") if name.strip()}
    for name in sorted(wanted - {_distribution(entry) for entry in entries}):  # which may bring something else
        try:
            distribution(name)
        except PackageNotFoundError:
            raise PluginError(f"{VARIABLE}: '{name}' is not installed; pip install {name}, or leave it out") from None
    on = [entry for entry in entries if _distribution(entry) in {_OWN, *wanted}]
    return on, [entry for entry in entries if entry not in on]


def _distribution(entry: EntryPoint) -> str:
    return _canonical(entry.dist.name) if entry.dist else ""


def _canonical(name: str) -> str:
    """As packaging's canonicalize_name; to import that would be a twentieth of what `llmconv --help` takes."""
    return re.sub(r"[-_.]+", "-", name).lower()
