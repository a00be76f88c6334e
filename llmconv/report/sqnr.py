"""SQNR tensor by tensor: points for a plot, and a table of the kinds of tensors behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from llmconv.bundle.bundle import Bundle
from llmconv.report.figures import Table, layers_of

_LAYER = re.compile(r"(?:^|\.)\w+\.(\d+)\.")  # in structural names: layers.3.mlp
_KINDS = {"new_key": "new keys", "new_value": "new values", "hidden": "hidden state between parts"}
WORST = 8  # kinds that a terminal shows
FALL = 20.0  # dB under the median of all activations: a tenth of the resolution


@dataclass(frozen=True)
class Series:
    """The SQNR of many tensors.

    Attributes:
        values: name -> dB, None where nothing was lost.
        layers: name -> layer, of those that have one.
        kinds: name -> what tensors of the other layers are like it.
        note: what is compared with what.
    """

    title: str
    values: Mapping[str, float | None]
    layers: Mapping[str, int]
    kinds: Mapping[str, str]
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
    note = (
        "Each weight on its grid against the checkpoint's, measured while it was rounded; of a large one, every 32nd "
        "block of rows."
    )
    found = [_structural("weights", weights, note)]
    note = (
        "Each activation on its grid against itself before that rounding, inside the quantized graph, on the held-out "
        "tokens of proof step 3; the rounding of that one tensor, not what earlier ones have lost. A low ratio is a "
        "coarse grid, or numbers beyond the range that calibration found. Heads count as one."
    )
    found.append(_structural("activations", precision.get("activations", {}), note))
    found += [_between(bundle, entry) for entry in precision.get("runtimes", [])]
    yield from (s for s in found if s.finite)


def _structural(title: str, values: Mapping[str, float | None], note: str) -> Series:
    """Of tensors with structural names."""
    matches = {name: _LAYER.search(name) for name in values}
    layers = {name: int(match[1]) for name, match in matches.items() if match}
    kinds = {name: name[match.end() :] if match else name for name, match in matches.items()}
    return Series(title, values, layers, kinds, note)


def _between(bundle: Bundle, entry: Mapping[str, Any]) -> Series:
    """Of outputs of parts; a hidden state counts to the last layer that it has passed."""
    layers, kinds = {}, {}
    for i, part in enumerate(bundle.graphs[entry["graph"]].parts):
        own = layers_of(bundle, i)
        for tensor in part.outputs:
            kinds[tensor.name] = _KINDS.get(tensor.kind, tensor.kind)
            layer = own[-1] if tensor.kind == "hidden" and own else tensor.layer
            if layer is not None:
                layers[tensor.name] = layer
    title = f"{entry['second']} against {entry['first']}, {entry['graph']}"
    note = "Outputs of each part, both runtimes on the same integers, on the tokens of proof step 4."
    return Series(title, entry["tensors"], layers, kinds, note)


def precision(bundle: Bundle) -> Iterator[Table]:
    """A table behind each plot: kinds of tensors, the worst first."""
    for s in series(bundle):
        kinds: dict[str, list[tuple[float, str]]] = {}
        for name, value in s.finite.items():
            kinds.setdefault(s.kinds[name], []).append((value, name))
        rows = []
        for kind, found in sorted(kinds.items(), key=lambda item: min(item[1])):
            lowest, name = min(found)
            where = f"layer {s.layers[name]}" if name in s.layers else ""
            rows.append((kind, where, f"{lowest:.1f}", f"{median(v for v, _ in found):.1f}", str(len(found))))
        exact = len(s.values) - len(s.finite)
        note = s.note + (f" {exact} more lost nothing: they were on their grid already." if exact else "")
        columns = ("kind of tensor", "lowest in", "lowest, dB", "median, dB", "tensors")
        yield Table(f"SQNR of {s.title}", columns, tuple(rows), "measured", 2, note, WORST)


def first_fall(bundle: Bundle) -> str | None:
    """In a line, the first layer in which rounding an activation costs far more than elsewhere; None without one."""
    for s in series(bundle):
        if s.title != "activations":
            continue
        usual = median(s.finite.values())
        low = [(s.layers[n], db, n) for n, db in s.finite.items() if n in s.layers and db <= usual - FALL]
        if low:
            layer, db, name = min(low)
            return f"the SQNR of activations falls first in layer {layer}: '{name}' {db:.1f} dB, the median {usual:.1f}"
    return None
