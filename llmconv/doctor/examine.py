"""Looks at this machine: what llmconv itself needs, then what plugins look at."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llmconv.doctor.finding import Finding
from llmconv.doctor.packages import packages
from llmconv.doctor.recipes import recipes
from llmconv.errors import LlmconvError
from llmconv.plugins.frame import plugin_code
from llmconv.plugins.registry import Registry
from llmconv.quantities import size
from llmconv.work import machine


def examine(registry: Registry, look: Callable[[str], None] = lambda _what: None) -> list[Finding]:
    """Every finding, in the order of looking.

    Args:
        look: told what is looked at next.
    """
    found: list[Finding] = []
    own: list[tuple[str, Iterable[Finding]]] = [
        ("this machine", _machine()),
        ("packages", packages()),
        ("recipes", recipes(registry)),
    ]
    for what, findings in own:
        look(what)
        found += findings
    for distribution, checkup in registry.registered_checkups:
        name = f"checkup {checkup.__name__} of {distribution}"
        look(name)
        try:
            with plugin_code(checkup, name):
                for one in checkup():
                    found.append(one)
        except LlmconvError as error:
            found.append(Finding(name, str(error), "optional", "report it to the plugin's author"))
    return found


def _machine() -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    memory = machine.memory()
    limit = "" if memory.limit is None else f"; {size(memory.limit)} within the container's limit"
    yield Finding("memory", f"{size(memory.available)} free, {size(memory.swap)} of swap{limit}")
    yield Finding("disk", f"{size(machine.disk_at_hand(Path.cwd()))} free here")
