"""Commands that list what there is: passes and other plugins, families of models, targets."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from llmconv.cli import display


def passes() -> None:
    """List passes, sources, backends and runtimes, and the distribution that each came from."""
    from llmconv.plugins.registry import KINDS, Registry

    registry = Registry.load()
    table = Table("kind", "name", "from", "what it does")
    for kind in KINDS:
        for name, entry in sorted(registry.of_kind(kind).items()):
            table.add_row(kind, name, entry.distribution, (entry.plugin.__doc__ or "").strip().partition("\n")[0])
    display.show(table)
    for where, why in registry.broken.items():
        display.note(f"plugin {where} cannot be loaded: {why}")


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """List what is installed: each distribution, its state, and what it brings with its options.

    LLMCONV_PLUGINS=NAME,NAME loads those distributions alone beside llmconv's own.
    """
    from llmconv.plugins.api import API_VERSION
    from llmconv.plugins.listing import listed
    from llmconv.plugins.registry import Registry

    with display.warnings_off():  # they are in the list
        found = listed(Registry.load())
    if as_json:
        print(json.dumps([one.to_dict() for one in found], indent=1, default=repr))
        return
    for one in found:
        display.say(f"{one.distribution} {one.version}: {one.state}", style="bold")
        for what, why in one.broken.items():
            display.say(f"  {what}: {why}")
        for thing in one.brings:
            display.say(f"  {thing.kind} {thing.name}" + (f": {thing.about}" if thing.about else ""))
            for option in thing.options:
                default = "must be given" if option.required else f"default {option.default!r}"
                display.say(
                    f"    {option.name} ({option.type}, {default})" + (f": {option.help}" if option.help else "")
                )
    display.note(f"plugin API {API_VERSION}")


def families() -> None:
    """List the families of models that checkpoints may be of, by config.json's model_type."""
    from llmconv.plugins.registry import Registry

    table = Table("model_type", "what it is", "compared with", "from")
    for distribution, family in Registry.load().registered_families:
        said = (family.__doc__ or "").strip().partition("\n")[0]
        table.add_row(", ".join(family.types), said, family.compared_with, distribution)
    display.show(table)
    display.note(
        "Where layers see a window, graphs see at most that many positions. Not read: mixtures of experts, state-space "
        "and convolution layers, compressed keys (MLA), images."
    )


def targets() -> None:
    """List the chipsets, and devices that carry them; a recipe may name either."""
    from llmconv.plugins.registry import Registry

    table = Table("chipset", "model", "HTP", "devices")
    for chipset in Registry.load().chipsets:
        table.add_row(chipset.name, chipset.model, f"v{chipset.htp_arch}", ", ".join(chipset.devices))
    display.show(table)
