"""Qualcomm's chipsets that QNN compiles for, the devices that carry them, and what their NPU holds.

Without torch: what a recipe names as its target is looked up before anything heavy is imported.

Numbers are those of litert/vendors/qualcomm/core/schema/soc_table.h of github.com/google-ai-edge/LiteRT ("derived from
the QAIRT 2.47 documentation"), SocModelFromName of github.com/onnxruntime/onnxruntime-qnn, and qc_schema.py of
github.com/pytorch/executorch; a test compiles for each, and compares with the name and generation that the compiler
writes into the binary. It takes both from the number: an htp_arch that is wrong beside it changes nothing.
"""

from __future__ import annotations

from llmconv import hookimpl
from llmconv.target import Chipset

DOMAIN_BYTES = 3_500_000_000  # users report 3.5 to 4 GB before load error 1002
GRAPH_BYTES = 2_097_152 * 1024  # the compiler's own message: "needs 2,347,229 KB > 2,097,152 KB"
CHOOSER = "htp"  # by name: this module imports none of what a chooser needs
PART_SECONDS = 0.010  # a part that takes longer leaves the phone's CPU time to clock down


def _chipset(
    name: str, model: str, soc_model: str, htp_arch: str, devices: tuple[str, ...] = (), bandwidth: float | None = None
) -> Chipset:
    holds = (DOMAIN_BYTES, GRAPH_BYTES, PART_SECONDS)
    return Chipset(name, model, soc_model, htp_arch, devices, *holds, bandwidth, chooser=CHOOSER)


PHONES = (
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
    _chipset("Snapdragon 8 Gen 5", "SM8845", "97", "81", ("OnePlus 15R",)),
    _chipset("Snapdragon 8s Gen 4", "SM8735", "85", "73"),
    _chipset("Snapdragon 8s Gen 3", "SM8635", "68", "73", ("Xiaomi 14 Civi",)),
    _chipset("Snapdragon 8+ Gen 1", "SM8475", "42", "69", ("Samsung Galaxy Z Fold4", "Xiaomi 12S")),
    _chipset("Snapdragon 8 Gen 1", "SM8450", "36", "69", ("Xiaomi 12",)),
    _chipset("Snapdragon 888", "SM8350", "30", "68", ("Xiaomi Mi 11",)),
    _chipset("Snapdragon 7+ Gen 3", "SM7675", "70", "73"),
    _chipset("Snapdragon 7 Gen 4", "SM7750", "86", "73"),
    _chipset("Snapdragon 7s Gen 3", "SM7635", "73", "73"),
    _chipset("Snapdragon 7 Gen 3", "SM7550", "64", "73"),
    _chipset("Snapdragon 7+ Gen 2", "SM7475", "54", "69"),
    _chipset("Snapdragon 7s Gen 2", "SM7435", "61", "73"),
    _chipset("Snapdragon 7 Gen 1", "SM7450", "41", "69"),
    _chipset("Snapdragon 780G", "SM7350", "32", "68"),
    _chipset("Snapdragon 778G", "SM7325", "35", "68"),
    _chipset("Snapdragon 6 Gen 4", "SM6650", "74", "73"),
    _chipset("Snapdragon 6 Gen 3", "SM6475", "76", "73"),
    _chipset("Snapdragon 6 Gen 1", "SM6450", "50", "73"),
)
LAPTOPS = (
    _chipset("Snapdragon X Elite", "SC8380XP", "60", "73", ("Snapdragon X Elite CRD",)),
    _chipset("Snapdragon X2 Elite", "SC8480XP", "88", "81", ("Snapdragon X2 Elite CRD",)),
    _chipset("Snapdragon 8cx Gen 3", "SC8280XP", "37", "68", ("Lenovo ThinkPad X13s",)),
)
CARS = (  # of which Qualcomm publishes part numbers; those that the compiler does not tell apart stand together
    _chipset("SA8775P", "SA8775P", "52", "73", ("SA8255P", "SA8650P")),
    _chipset("SA8797P", "SA8797P", "72", "81"),
    _chipset("SA8620P", "SA8620P", "67", "75", ("SA7255P",)),
    _chipset("SA8295P", "SA8295P", "39", "68"),
    _chipset("SA8540P", "SA8540P", "62", "68"),
)
THINGS = (
    _chipset("Dragonwing IQ-9", "QCS9100", "77", "73", ("QCS9075",)),
    _chipset("Dragonwing IQ-8", "QCS8300", "82", "75", ("QCS8275",)),
    _chipset("Dragonwing QCS8550", "QCS8550", "66", "73", ("QCM8550",)),
    _chipset("Dragonwing Q-6690", "QCM6690", "78", "73"),
    _chipset("Dragonwing QCS6490", "QCS6490", "93", "68", ("QCM6490", "RB3 Gen 2", "Radxa Dragon Q6A")),
    _chipset("Snapdragon XR2 Gen 2", "SXR2230P", "53", "69", ("Meta Quest 3",)),
    _chipset("SXR2330P", "SXR2330P", "75", "79"),
    _chipset("SXR1230P", "SXR1230P", "45", "73"),
    _chipset("SSG2125P", "SSG2125P", "58", "73", ("SAR1130P",)),
    _chipset("SSG2115P", "SSG2115P", "46", "73", ("SAR2130P",)),
    _chipset("SAR2230P", "SAR2230P", "95", "81"),
    _chipset("SW6100", "SW6100", "96", "81"),
)
CHIPSETS = (*PHONES, *LAPTOPS, *CARS, *THINGS)


@hookimpl
def register_chipsets() -> tuple[Chipset, ...]:
    """All of them."""
    return CHIPSETS
