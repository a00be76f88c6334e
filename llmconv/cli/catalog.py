"""Commands that list what there is: passes and other plugins, families of models, targets."""

from __future__ import annotations

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
