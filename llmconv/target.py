"""The chipsets that parts can be compiled for, and the devices that carry them."""

from __future__ import annotations

from dataclasses import dataclass

from llmconv.errors import RecipeError
from llmconv.naming import nearest

__all__ = ["Chipset"]

DOMAIN_BYTES = 3_500_000_000  # users report 3.5 to 4 GB before load error 1002
GRAPH_BYTES = 2_097_152 * 1024  # the compiler's own message: "needs 2,347,229 KB > 2,097,152 KB"
PART_SECONDS = 0.010  # a part that takes longer leaves the phone's CPU time to clock down


@dataclass(frozen=True)
class Chipset:
    """One chipset.

    Attributes:
        model: Qualcomm's part number.
        soc_model: the QNN compiler's number for it.
        htp_arch: the generation of its NPU, e.g. "73" for v73.
        devices: phones and laptops that carry it.
        bandwidth: of its memory in bytes a second; None where no figure is at hand.
        domain_bytes: what one process domain of its NPU holds: weights, inputs, outputs and buffers of a part.
        graph_bytes: what one graph may need of memory.
    """

    name: str
    model: str
    soc_model: str
    htp_arch: str
    devices: tuple[str, ...]
    bandwidth: float | None = None
    domain_bytes: int = DOMAIN_BYTES
    graph_bytes: int = GRAPH_BYTES


_CHIPSETS = (
    Chipset(
        "Snapdragon 8 Gen 2",
        "SM8550",
        "43",
        "73",
        ("Samsung Galaxy S23", "Samsung Galaxy S23+", "Samsung Galaxy S23 Ultra", "Xiaomi 13", "OnePlus 11"),
        67.2e9,
    ),
    Chipset("Snapdragon 8 Gen 3", "SM8650", "57", "75", ("Samsung Galaxy S24 Ultra", "Xiaomi 14", "OnePlus 12")),
    Chipset(
        "Snapdragon 8 Elite",
        "SM8750",
        "69",
        "79",
        ("Samsung Galaxy S25", "Samsung Galaxy S25+", "Samsung Galaxy S25 Ultra", "Xiaomi 15", "OnePlus 13"),
    ),
    Chipset("Snapdragon 8 Elite Gen 5", "SM8850", "87", "81", ("Xiaomi 17",)),
    Chipset("Snapdragon X Elite", "SC8380XP", "60", "73", ("Snapdragon X Elite CRD",)),
    Chipset("Snapdragon X2 Elite", "SC8480XP", "88", "81", ("Snapdragon X2 Elite CRD",)),
)


def all_chipsets() -> tuple[Chipset, ...]:
    """Every chipset that is known."""
    return _CHIPSETS


def find(name: str) -> Chipset:
    """The chipset of that name, part number, or device.

    Raises:
        RecipeError: none is known by that name.
    """
    wanted = _plain(name)
    known: dict[str, Chipset] = {}
    for chipset in _CHIPSETS:
        for alias in (chipset.name, chipset.model, *chipset.devices):
            known[alias] = chipset
            if wanted in (_plain(alias), _plain(alias).removeprefix("samsung ")):
                return chipset
    raise RecipeError(f"target.name: no chipset or device '{name}'{nearest(name, known)}")


def _plain(name: str) -> str:
    return " ".join(name.lower().split())
