"""SQNR tensor by tensor: points for a plot, and a table of the kinds of tensors behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from llmconv.bundle.bundle import Bundle
from llmconv.report.figures import Table

_LAYER = re.compile(r"(?:^|\.|_)(?:layers\.)?(\d+)(?:_out)?(?:\.|$)")
WORST = 8  # kinds that a terminal shows


@dataclass(frozen=True)
class Series:
    """The SQNR of many tensors.

    Attributes:
        values: name -> dB, None where nothing was lost.
        note: what is compared with what.
    """

    title: str
    values: Mapping[str, float | None]
    note: str

    @property
    def finite(self) -> dict[str, float]:
        """Those that lost something."""
        return {name: value for name, value in self.values.items() if value is not None}

    @property
    def worst(self) -> tuple[str, float]:
        """The tensor that lost most."""
        return min(self.finite.items(), key=lambda item: item[1])


def series(bundle: Bundle) -> Iterator[Series]:
    """Weights as they were rounded, activations as they are rounded, and runtimes against each other."""
    report = bundle.report
    weights = {name: w["sqnr"] for name, w in report.get("weights", {}).items()}
    precision = report.get("precision", {})
    found = [
        Series("Weights", weights, "Each weight on its grid against the checkpoint's, measured while it was rounded."),
        Series(
            "Activations",
            precision.get("activations", {}),
            "Each activation on its grid against itself before that rounding, inside the quantized graph, on the "
            "held-out tokens of proof step 3; the rounding of that one tensor, not what earlier ones have lost. "
            "A low ratio is a coarse grid, or numbers beyond the range that calibration found. Heads count as one.",
        ),
    ]
    for entry in precision.get("runtimes", []):
        title = f"{entry['second']} against {entry['first']}, {entry['graph']}"
        note = "Outputs of each part, both runtimes on the same integers, on the tokens of proof step 4."
        found.append(Series(title, entry["tensors"], note))
    yield from (s for s in found if s.finite)


def layer_of(name: str) -> int | None:
    """The layer that a tensor's name tells."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def kind_of(name: str) -> str:
    """The name without its layer."""
    found = _LAYER.search(name)
    return name if found is None else f"{name[: found.start(1)]}*{name[found.end(1) :]}".removeprefix("layers.*.")


def precision(bundle: Bundle) -> Iterator[Table]:
    """A table behind each plot: kinds of tensors, the worst first."""
    for s in series(bundle):
        kinds: dict[str, list[tuple[float, str]]] = {}
        for name, value in s.finite.items():
            kinds.setdefault(kind_of(name), []).append((value, name))
        rows = [
            (kind, _where(min(found)[1]), f"{min(found)[0]:.1f}", f"{median(v for v, _ in found):.1f}", str(len(found)))
            for kind, found in sorted(kinds.items(), key=lambda item: min(item[1]))
        ]
        exact = len(s.values) - len(s.finite)
        note = s.note + (f" {exact} more lost nothing: they were on their grid already." if exact else "")
        columns = ("kind of tensor", "lowest in", "lowest, dB", "median, dB", "tensors")
        yield Table(f"SQNR of {s.title[0].lower()}{s.title[1:]}", columns, tuple(rows), "measured", 2, note, WORST)


def _where(name: str) -> str:
    layer = layer_of(name)
    return "" if layer is None else f"layer {layer}"
