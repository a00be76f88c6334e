"""How large a model's parts are, read off the graphs: no weight and no encoding is needed, bit widths are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Literal, NamedTuple

from torch import fx

from llmconv.graph.model import (
    IO,
    Graph,
    Model,
    inputs_of,
    io_of,
    name_of,
    outputs_of,
    shape_of,
    value_of,
)
from llmconv.graph.ops import ATTENTION, aten, is_table, weight_of

FLOAT_BITS = 32  # of what no pass gives a width


@dataclass(frozen=True)
class GraphSize:
    """One graph's share of a part.

    Attributes:
        label: the graph's name inside a binary.
        input_bytes, output_bytes: of one run.
        cache_bytes: keys and values among both.
        nodes: of the fx graph.
    """

    graph: str
    label: str
    ar: int
    context: int
    input_bytes: int
    output_bytes: int
    cache_bytes: int
    nodes: int

    @property
    def io_bytes(self) -> int:
        """All that goes in and out."""
        return self.input_bytes + self.output_bytes


@dataclass(frozen=True)
class PartSize:
    """One part over all graphs.

    Attributes:
        number: counts from 0.
        layers: how many layers keep keys and values in it.
        weight_bytes: packed, with scales; every graph shares them.
        table_bytes: of those, embedding tables, which are looked up and not multiplied with.
        head_bytes: of those, the projection to logits.
        elements: of all weights.
        largest: elements of the largest weight.
    """

    number: int
    layers: int
    weight_bytes: int
    table_bytes: int
    head_bytes: int
    elements: int
    largest: int
    graphs: tuple[GraphSize, ...]

    @property
    def nodes(self) -> int:
        """Of the fx graphs."""
        return sum(g.nodes for g in self.graphs)


def widths_of(model: Model) -> dict[str, float]:
    """Bits of each value and weight that has an encoding, by structural name."""
    if model.encodings is None:
        return {}
    values = {name: float(encoding.bits) for name, encoding in model.encodings.values.items()}
    return values | {name: encoding.width for name, encoding in model.encodings.weights.items()}


class Item(NamedTuple):
    """What a part is made of: a weight, a layer that keeps keys and values, a graph's input, output or other node.

    Attributes:
        graph: of an input, an output or a node; empty for what all graphs share.
        place: the layer that it stands for where others were not laid out, else None.
    """

    what: Literal["weight", "layer", "input", "output", "node"]
    graph: str
    name: str
    place: int | None = None


class Held(NamedTuple):
    """What an item takes.

    Attributes:
        bytes: of a weight, packed, or of an input or output in one run.
        elements: of a weight.
        table, head: of a weight: whether it is looked up and not multiplied with, and whether it gives the logits.
        io: of an input or output.
    """

    bytes: int = 0
    elements: int = 0
    table: bool = False
    head: bool = False
    io: IO | None = None


Contents = dict[Item, Held]


def part_sizes(model: Model, widths: Mapping[str, float]) -> list[PartSize]:
    """The size of every part.

    Args:
        widths: bits of values and weights, by structural name; 32 where a name is missing.
    """
    graphs = list(model.graphs.values())
    count = len(graphs[0].parts)
    return [size_of(contents_of(graphs, i, widths), graphs, i, count) for i in range(count)]


def contents_of(graphs: Sequence[Graph], number: int, widths: Mapping[str, float]) -> Contents:
    """What a part of all graphs is made of; arguments as of `part_sizes`."""
    found, head = Contents(), _head(graphs[0].parts[number])
    for graph in graphs:
        part = graph.parts[number]
        for node in part.graph.find_nodes(op="get_attr"):
            name = name_of(node)
            weight = Held(weight_bytes(node, widths), prod(shape_of(node)), is_table(node), name in head)
            found[Item("weight", "", name)] = weight
        io_in, io_out = io_of(part)
        for name, node in inputs_of(part).items():
            found[Item("input", graph.name, name)] = Held(_value_bytes(node, widths), io=io_in[name])
        for name, node in outputs_of(part).items():
            found[Item("output", graph.name, name)] = Held(_value_bytes(node, widths), io=io_out[name])
        found |= {Item("layer", "", str(io.layer)): Held() for io in io_out.values() if io.layer is not None}
        nodes = (n for n in part.graph.nodes if n.op not in ("placeholder", "output"))
        found |= {Item("node", graph.name, f"{n.op} {name_of(n)}"): Held() for n in nodes}
    return found


def size_of(contents: Contents, graphs: Sequence[Graph], number: int, count: int) -> PartSize:
    """The size of a part, one of `count`, that is made of these."""
    held: dict[tuple[str, str], list[Held]] = defaultdict(list)
    for item, one in contents.items():
        held[item.what, item.graph].append(one)
    weights = held["weight", ""]
    return PartSize(
        number,
        len(held["layer", ""]),
        sum(w.bytes for w in weights),
        sum(w.bytes for w in weights if w.table),
        sum(w.bytes for w in weights if w.head),
        sum(w.elements for w in weights),
        max((w.elements for w in weights), default=0),
        tuple(
            _graph(g, g.label(number, count), held["input", g.name], held["output", g.name], len(held["node", g.name]))
            for g in graphs
        ),
    )


def _graph(graph: Graph, label: str, inputs: list[Held], outputs: list[Held], others: int) -> GraphSize:
    return GraphSize(
        graph.name,
        label,
        graph.ar,
        graph.context,
        sum(port.bytes for port in inputs),
        sum(port.bytes for port in outputs),
        sum(port.bytes for port in (*inputs, *outputs) if port.io is not None and port.io.layer is not None),
        len(inputs) + others + 1,  # the output node
    )


def balance(weights: Sequence[float], count: int) -> list[int]:
    """Lengths of `count` runs of neighbours whose sums are as even as can be: the least sum of squares."""
    total = [0.0, *accumulate(weights)]
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # by the end of the runs so far
    for k in range(1, count + 1):
        best = {
            end: min(
                (square + (total[end] - total[start]) ** 2, [*lengths, end - start])
                for start, (square, lengths) in best.items()
                if start < end
            )
            for end in range(k, len(weights) + 1)
        }
    return best[len(weights)][1]


def _head(part: fx.GraphModule) -> set[str]:
    """The weights of the projection to logits: those nearest to that output."""
    io = io_of(part)[1]
    nodes = [node for name, node in outputs_of(part).items() if io[name].kind == "logits"]
    while nodes:
        roots = [weight_of(i) for node in nodes for i in node.all_input_nodes]
        if found := {name_of(root) for root in roots if root is not None}:
            return found
        nodes = [i for node in nodes for i in node.all_input_nodes]
    return set()


def weight_bytes(node: fx.Node, widths: Mapping[str, float]) -> int:
    """Bytes of a weight's packed integers and scales.

    Args:
        widths: bits by structural name; 32 where it is missing.
    """
    shape, bits = shape_of(node), widths.get(name_of(node), FLOAT_BITS)
    scales = shape[0] if bits < 16 else 1 if bits == 16 else 0  # float32, one a row below 16 bits
    return math.ceil(math.prod(shape) * bits / 8) + 4 * scales


def _value_bytes(node: fx.Node, widths: Mapping[str, float]) -> int:
    value = value_of(node)
    bits = widths.get(name_of(node), FLOAT_BITS) if value.is_floating_point() else 32  # ids are int32
    return round(value.numel() * bits / 8)


def score_bytes(graph: Graph, heads: int, widths: Mapping[str, float]) -> dict[str, int] | None:
    """Bytes of the largest scores tensor as the graph has it, and of one with all heads; None without attention.

    Args:
        heads: query heads of a layer.
        widths: bits of values, by structural name; 32 where a name is missing.

    Returns:
        `bits`, `all_heads`, `largest`.
    """
    found = [pair for part in graph.parts for node in part.graph.nodes for pair in _scores(node, widths)]
    if not found:
        return None
    elements, bits = max(found)
    return {"bits": bits, "all_heads": heads * graph.ar * graph.context * bits // 8, "largest": elements * bits // 8}


def _scores(node: fx.Node, widths: Mapping[str, float]) -> list[tuple[int, int]]:
    """Elements and bits of the scores that a node makes or takes, if it is attention."""
    if node.target is aten.softmax.int:
        return [(prod(shape_of(node)), int(widths.get(name_of(node), FLOAT_BITS)))]  # of values, whole
    if node.target in ATTENTION:
        q, k = node.args[:2]
        assert isinstance(q, fx.Node)
        assert isinstance(k, fx.Node)
        return [(prod(shape_of(q)[:-1]) * shape_of(k)[-2], FLOAT_BITS)]
    return []


def bytes_a_token(part: PartSize) -> int:
    """What writing a token reads of memory: every weight but embedding tables, and the keys and values, once.

    Keys and values are those of the longest context that the graphs which read least see.
    """
    least = min(g.ar for g in part.graphs)
    return part.weight_bytes - part.table_bytes + max(g.cache_bytes for g in part.graphs if g.ar == least)
