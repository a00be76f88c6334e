"""A graph for people: a line for each node, what differs between two, and ONNX that Netron draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper
from torch import fx

from llmconv.graph.model import IO_META, MADE_BY, NAME, Graph, op_name, outputs_of, shape_of, value_of

SOURCE = "source"  # what made the nodes that no pass made
DOMAIN = "llmconv"  # of the ops that Netron is shown
_WORDS = {"placeholder": "input", "get_attr": "weight"}


@dataclass(frozen=True)
class Line:
    """One node.

    Attributes:
        name: the structural one.
        shape: with the dtype, e.g. `(1, 4, 8, 14) float32`.
        made_by: the pass, or `source`.
    """

    name: str
    op: str
    shape: str
    made_by: str

    def columns(self) -> tuple[str, str, str, str]:
        """As they stand side by side."""
        return self.name, self.op, self.shape, self.made_by


def lines_of(part: fx.GraphModule, layer: int | None = None) -> list[Line]:
    """The nodes of a part in the order in which they run.

    Args:
        layer: whose nodes alone are wanted; inputs of its cache are among them.
    """
    nodes = [n for n in part.graph.nodes if n.op != "output"]
    return [line_of(node) for node in nodes if layer is None or layer_of(node) == layer]


def layer_of(node: fx.Node) -> int | None:
    """The layer of a node: what its cache input says, or the first number in its structural name."""
    io = node.meta.get(IO_META)
    if io is not None and io.layer is not None:
        return int(io.layer)
    return next((int(word) for word in str(node.meta[NAME]).split(".") if word.isdigit()), None)


def line_of(node: fx.Node) -> Line:
    """A node's line."""
    value = value_of(node)
    shape = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return Line(str(node.meta[NAME]), _WORDS.get(node.op) or op_name(node), shape, node.meta.get(MADE_BY, SOURCE))


def difference(before: Sequence[Line], after: Sequence[Line]) -> Iterator[tuple[str, Line]]:
    """What only one of two graphs has: ("-", line) of the first, then ("+", line) of the second."""
    for sign, lines, others in (("-", before, after), ("+", after, before)):
        left = Counter(line.columns()[:3] for line in others)
        for line in lines:
            if left[line.columns()[:3]]:
                left[line.columns()[:3]] -= 1
            else:
                yield sign, line


def for_netron(graph: Graph, part: int) -> onnx.ModelProto:
    """A part as ONNX that Netron draws and nothing runs: ops by their ATen names, weights without data."""
    nodes = [n for n in graph.parts[part].graph.nodes if n.op != "output"]
    names = {n: f"{n.meta[NAME]}#{i}" if n.op == "get_attr" else str(n.meta[NAME]) for i, n in enumerate(nodes)}
    info = {n: helper.make_tensor_value_info(names[n], _onnx_type(n), shape_of(n)) for n in nodes}
    inputs = [n for n in nodes if n.op == "placeholder"]
    made = [_drawn(n, names) for n in nodes if n.op != "placeholder"]
    ends, known = outputs_of(graph.parts[part]).values(), list(info.values())
    shown = helper.make_graph(
        made, graph.label(part), [info[n] for n in inputs], [info[n] for n in ends], value_info=known
    )
    return helper.make_model(shown, opset_imports=[helper.make_opsetid(DOMAIN, 1)], producer_name="llmconv graph")


def _drawn(node: fx.Node, names: Mapping[fx.Node, str]) -> onnx.NodeProto:
    op, inputs = _WORDS.get(node.op) or op_name(node), [names[i] for i in node.all_input_nodes]
    made_by = node.meta.get(MADE_BY, SOURCE)
    return helper.make_node(op, inputs, [names[node]], name=names[node], domain=DOMAIN, doc_string=made_by)


def _onnx_type(node: fx.Node) -> int:
    return int(TensorProto.FLOAT if value_of(node).is_floating_point() else TensorProto.INT32)
