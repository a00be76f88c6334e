"""Qualcomm's chipsets that QNN compiles for, the devices that carry them, and what their NPU holds.

Without torch: what a recipe names as its target is looked up before anything heavy is imported.
"""

from __future__ import annotations

from llmconv import hookimpl
from llmconv.target import Chipset

DOMAIN_BYTES = 3_500_000_000  # users report 3.5 to 4 GB before load error 1002
GRAPH_BYTES = 2_097_152 * 1024  # the compiler's own message: "needs 2,347,229 KB > 2,097,152 KB"
CHOOSER = "htp"  # by name: this module imports none of what a chooser needs
PART_SECONDS = 0.010  # a part that takes longer leaves the phone's CPU time to clock down


def _chipset(
    name: str, model: str, soc_model: str, htp_arch: str, devices: tuple[str, ...], bandwidth: float | None = None
) -> Chipset:
    holds = (DOMAIN_BYTES, GRAPH_BYTES, PART_SECONDS)
    return Chipset(name, model, soc_model, htp_arch, devices, *holds, bandwidth, chooser=CHOOSER)


CHIPSETS = (
    _chipset(
        "Snapdragon 8 Gen 2",
        "SM8550",
        "43",
        "73",
        ("Samsung Galaxy S23", "Samsung Galaxy S23+", "Samsung Galaxy S23 Ultra", "Xiaomi 13", "OnePlus 11"),
        67.2e9,
    ),
    _chipset("Snapdragon 8 Gen 3", "SM8650", "57", "75", ("Samsung Galaxy S24 Ultra", "Xiaomi 14", "OnePlus 12")),
    _chipset(
        "Snapdragon 8 Elite",
        "SM8750",
        "69",
        "79",
        ("Samsung Galaxy S25", "Samsung Galaxy S25+", "Samsung Galaxy S25 Ultra", "Xiaomi 15", "OnePlus 13"),
    ),
    _chipset("Snapdragon 8 Elite Gen 5", "SM8850", "87", "81", ("Xiaomi 17",)),
    _chipset("Snapdragon X Elite", "SC8380XP", "60", "73", ("Snapdragon X Elite CRD",)),
    _chipset("Snapdragon X2 Elite", "SC8480XP", "88", "81", ("Snapdragon X2 Elite CRD",)),
)


@hookimpl
def register_chipsets() -> tuple[Chipset, ...]:
    """All of them."""
    return CHIPSETS
