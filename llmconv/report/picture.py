"""Pictures of a bundle as plain geometry, which the page's template draws: its parts, and SQNR over layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor

from llmconv.bundle.bundle import Bundle
from llmconv.bundle.specs import TensorSpec
from llmconv.report.figures import amount, layers_of
from llmconv.report.sqnr import Series

WIDTH = 340  # of every picture, in units that are pixels on a narrow phone
BOX, GAP, BAR = 92, 44, 10  # heights: a part, between parts, its weights
PLOT, LEFT, RIGHT, TOP, BOTTOM = 170, 34, 8, 10, 26  # height and margins of a plot
CROWD = 400  # dots
LETTERS = 50  # that fit in a line
SPREAD = 0.7  # of a layer's width, over which its tensors stand


@dataclass(frozen=True)
class Bar:
    """A piece of a part's weights."""

    x: float
    width: float
    bits: int


@dataclass(frozen=True)
class PartBox:
    """One part; `above` is what flows into it, `below` what leaves the last one."""

    y: int
    title: str
    size: str
    lines: tuple[str, ...]
    bars: tuple[Bar, ...]
    above: str
    below: str


@dataclass(frozen=True)
class PartsPicture:
    """Parts from top to bottom, and the bit widths of their weights."""

    height: int
    boxes: tuple[PartBox, ...]
    bits: tuple[int, ...]


def parts_picture(bundle: Bundle) -> PartsPicture:
    """Boxes of all parts, their bars as wide as their weights are large."""
    count = len(next(iter(bundle.graphs.values())).parts)
    weights = list(bundle.report.get("weights", {}).values())
    bits = tuple(sorted({w["bits"] for w in weights}))
    sums = [
        {b: sum(w["bytes"] for w in weights if (w["part"], w["bits"]) == (i, b)) for b in bits} for i in range(count)
    ]
    most = max((sum(s.values()) for s in sums), default=0) or 1
    boxes = []
    for i in range(count):
        y, x, bars = GAP + i * (BOX + GAP), 12.0, []
        for b in bits:
            width = sums[i][b] / most * (WIDTH - 24)
            bars.append(Bar(round(x, 1), round(width, 1), b))
            x += width
        below = _flow(bundle, i, "outputs") if i == count - 1 else ""
        title, size = f"Part {i + 1} of {count}", amount(sum(sums[i].values()))
        boxes.append(PartBox(y, title, size, tuple(_lines(bundle, i)), tuple(bars), _flow(bundle, i, "inputs"), below))
    return PartsPicture(GAP + count * (BOX + GAP), tuple(boxes), bits)


def _lines(bundle: Bundle, part: int) -> Iterator[str]:
    layers, graphs = layers_of(bundle, part), list(bundle.graphs.values())
    span = "no layer" if not layers else f"layer {layers[0]}"
    if len(layers) > 1:
        span = f"layers {layers[0]} to {layers[-1]}"
    size: dict[str, int] = next((p for p in bundle.report.get("parts", []) if p["number"] == part), {})
    before = "embedding table, " if size.get("table_bytes") else ""
    yield f"{before}{span}{', projection to logits' if size.get('head_bytes') else ''}"
    cached = [t for g in graphs for t in g.parts[part].inputs if t.kind == "past_key"]
    shapes = sorted({f"{t.shape[t.token_axis or 0]}" for t in cached}, key=int)
    yield _fit(f"past: keys and values of {' or '.join(shapes)} positions" if shapes else "past: none")


def _flow(bundle: Bundle, part: int, side: str) -> str:
    """The tensor that goes on from part to part, its type, and its shape in each graph."""
    found: list[TensorSpec] = []
    for graph in bundle.graphs.values():
        specs = getattr(graph.parts[part], side)
        found += [t for t in specs if t.kind in ("input_ids", "hidden", "logits")][:1]
    if not found:
        return ""
    shapes = " or ".join(dict.fromkeys("×".join(map(str, t.shape)) for t in found))
    return _fit(f"{found[0].name}  {found[0].dtype}  {shapes}")


def _fit(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


@dataclass(frozen=True)
class Dot:
    """One tensor."""

    x: float
    y: float
    name: str
    value: str
    worst: bool


@dataclass(frozen=True)
class Plot:
    """SQNR over layers.

    Attributes:
        radius: of a dot, smaller where there are many.
        rows, columns: place and text of each line of the scale, of each layer that is named.
        worst: the tensor that lost most, and what its SQNR is.
    """

    title: str
    note: str
    height: int
    radius: float
    dots: tuple[Dot, ...]
    rows: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str], ...]
    worst: str


def plot_of(found: Series, layers: int) -> Plot:
    """Dots of all tensors; those of no layer stand before the first or behind the last one."""
    values = found.finite
    low, high = floor(min(values.values()) / 10) * 10, ceil(max(values.values()) / 10) * 10
    high = max(high, low + 10)
    step = 10 if high - low <= 60 else 20 if high - low <= 120 else 40

    def down(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (PLOT - TOP - BOTTOM), 1)

    def across(place: float) -> float:
        return round(LEFT + (place + 1.5) / (layers + 2) * (WIDTH - LEFT - RIGHT), 1)

    worst, lowest = found.worst
    places = _places(found, layers)
    dots = [
        Dot(across(places[name]), down(value), name, f"{value:.1f} dB", name == worst) for name, value in values.items()
    ]
    every = max(1, ceil(layers / 8))
    columns = [(across(i), str(i)) for i in range(0, layers, every)]
    rows = [(down(v), str(v)) for v in range(low, high + 1, step)]
    dots.sort(key=lambda dot: dot.worst)  # drawn last
    radius = 2.8 if len(dots) < CROWD else 1.9
    return Plot(
        found.title, found.note, PLOT, radius, tuple(dots), tuple(rows), tuple(columns), f"{worst}, {lowest:.1f} dB"
    )


def _places(found: Series, layers: int) -> dict[str, float]:
    """Where on the axis of layers each tensor stands: those of one layer side by side, in order."""
    groups: dict[int, list[str]] = {}
    seen = False
    for name in found.finite:
        layer = found.layers.get(name)
        seen = seen or layer is not None
        groups.setdefault(layer if layer is not None else layers if seen else -1, []).append(name)
    return {
        name: place + SPREAD * ((i + 0.5) / len(group) - 0.5)
        for place, group in groups.items()
        for i, name in enumerate(group)
    }
