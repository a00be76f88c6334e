"""What parts are made for: a chipset, as data, which plugins bring."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmconv.errors import RecipeError
from llmconv.naming import nearest

__all__ = ["Chipset"]


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
        chooser: the plugin that chooses recipes for it, by name; "" where none does.
        part_seconds: what a part may take for a token before the phone's CPU clocks down between parts.
    """

    name: str
    model: str
    soc_model: str
    htp_arch: str
    devices: tuple[str, ...]
    domain_bytes: int
    graph_bytes: int
    part_seconds: float
    bandwidth: float | None = None
    chooser: str = ""


def find(name: str, chipsets: Iterable[Chipset]) -> Chipset:
    """The chipset of that name, part number, or device, among those that plugins bring.

    Raises:
        RecipeError: none is known by that name.
    """
    wanted = _plain(name)
    known: dict[str, Chipset] = {}
    for chipset in chipsets:
        for alias in (chipset.name, chipset.model, *chipset.devices):
            known[alias] = chipset
            if wanted in (_plain(alias), _plain(alias).removeprefix("samsung ")):
                return chipset
    raise RecipeError(f"target.name: no chipset or device '{name}'{nearest(name, known)}")


def _plain(name: str) -> str:
    return " ".join(name.lower().split())
