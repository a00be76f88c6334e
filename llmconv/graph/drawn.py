"""A graph as a picture: a box for each node, layer below layer, in SVG that any browser shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from torch import fx

from llmconv.errors import LlmconvError
from llmconv.graph.shown import Line, layer_of, line_of

WIDTH, HEIGHT = 250, 44  # of a box
ACROSS, DOWN = WIDTH + 20, HEIGHT + 36  # from box to box
MARGIN = 20
MOST = 3000  # boxes, which take some seconds to place; no one looks at more
LETTERS = 40  # that fit in a line of a box
HUES = 8  # by which passes are told apart
_STYLE = """
svg { background: #fff; color: #222; font: 11px sans-serif; fill: currentColor }
@media (prefers-color-scheme: dark) { svg { background: #1b1d22; color: #ddd } }
path { fill: none; stroke: currentColor; stroke-opacity: .45 }
rect { fill-opacity: .12; stroke-width: 1.3 }
.outside { stroke-dasharray: 4 3 }
.name { font-weight: bold }
"""


def as_svg(parts: Sequence[fx.GraphModule], layer: int | None = None) -> str:
    """Nodes with arrows from what they read; hovering over one shows its whole line.

    Args:
        layer: whose nodes alone are wanted; what they read from elsewhere has a dashed box.

    Raises:
        LlmconvError: igraph, which places the boxes, is not installed, or there are too many.
    """
    everything = [n for part in parts for n in part.graph.nodes if n.op != "output"]
    inside = [n for n in everything if layer is None or layer_of(n) == layer]
    nodes = list(dict.fromkeys(m for n in inside for m in (*n.all_input_nodes, n)))
    if len(nodes) > MOST:
        raise LlmconvError(f"{len(nodes)} nodes are too many for a picture; choose a --layer or a --part")
    place = {n: i for i, n in enumerate(nodes)}
    edges = [(place[m], place[n]) for n in inside for m in n.all_input_nodes]
    points = _placed(len(nodes), edges)
    lines, wanted = [line_of(n) for n in nodes], set(inside)
    makers = {maker: i for i, maker in enumerate(dict.fromkeys(line.made_by for line in lines))}
    width = max((x for x, _ in points), default=0) + WIDTH + 2 * MARGIN
    height = max((y for _, y in points), default=0) + HEIGHT + 2 * MARGIN
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"><style>{_STYLE}</style>'
    ]
    drawn += [_arrow(points[start], points[end]) for start, end in edges]  # beneath the boxes
    for n, line, point in zip(nodes, lines, points, strict=True):
        drawn += _box(line, point, 360 * makers[line.made_by] // HUES, n in wanted)
    return "\n".join([*drawn, "</svg>\n"])


Point = tuple[float, float]


def _placed(count: int, edges: Sequence[tuple[int, int]]) -> list[Point]:
    """Where the boxes' corners are."""
    try:
        import igraph  # noqa: PLC0415  an extra
    except ImportError as error:
        raise LlmconvError("a picture needs: pip install 'llmconv[draw]'; an .onnx for Netron does not") from error
    graph = igraph.Graph(count, edges, directed=True)
    layout: Any = graph.layout_sugiyama(layers=_rows(count, edges), hgap=ACROSS, vgap=DOWN)
    shift, free, points = (
        MARGIN - min((x for x, _ in layout), default=0),
        dict[float, float](),
        list[Point]([(0, 0)]) * count,
    )
    for node in sorted(range(count), key=lambda node: float(layout[node][0])):
        x, y = layout[node]
        points[node] = max(x + shift, free.get(y, 0)), y + MARGIN  # a few overlap where igraph puts them
        free[y] = points[node][0] + ACROSS
    return points


def _rows(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The row of each node: below all that it reads, and right above its first reader."""
    rows, readers = [0] * count, [list[int]() for _ in range(count)]
    for start, end in sorted(edges, key=lambda edge: edge[1]):  # nodes stand in the order in which they run
        rows[end] = max(rows[end], rows[start] + 1)
        readers[start].append(end)
    for node in reversed(range(count)):
        rows[node] = min((rows[end] - 1 for end in readers[node]), default=rows[node])
    return rows


def _arrow(start: Point, end: Point) -> str:
    """From the bottom of a box to the top of another."""
    x0, y0, x1, y1 = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1]
    between = (y0 + y1) / 2
    return f'<path d="M{x0:.0f} {y0:.0f}C{x0:.0f} {between:.0f} {x1:.0f} {between:.0f} {x1:.0f} {y1:.0f}"/>'


def _box(line: Line, point: Point, hue: int, inside: bool) -> Iterator[str]:
    (x, y), colour = point, f"hsl({hue} 65% 50%)"
    kind = "" if inside else ' class="outside"'
    yield f"<g{kind}><title>{escape('  '.join(line.columns()))}</title>"
    yield (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="5" '
        f"fill={quoteattr(colour)} stroke={quoteattr(colour)}/>"
    )
    yield f'<text class="name" x="{x + 8:.0f}" y="{y + 17:.0f}">{escape(_end(line.name))}</text>'
    yield f'<text x="{x + 8:.0f}" y="{y + 34:.0f}">{escape(_end(f"{line.op} {line.shape}"))}</text></g>'


def _end(text: str) -> str:
    """As much of a text as fits; of names, the end tells more."""
    return text if len(text) <= LETTERS else f"…{text[1 - LETTERS :]}"
