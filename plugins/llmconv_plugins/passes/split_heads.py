"""Split multi-head attention into one attention per head, projections and RoPE included (QNN: MHA to SHA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import fx

from llmconv.graph import (
    ATTENTION,
    ELEMENTWISE,
    NORMS,
    Graph,
    aten,
    insert,
    io_of,
    name_of,
    outputs_of,
    set_outputs,
    shape_of,
)
from llmconv.passes import GraphPass

_ALONG_LAST = ELEMENTWISE | NORMS  # ops that leave every axis but the last alone


@dataclass(frozen=True)
class SplitHeads(GraphPass):
    """One attention per head, so that each fits the NPU's tile.

    Given:  sdpa(q (1, H, T, D), k and v (1, G, S, D)), q = rope(transpose(unflatten(linear(x, W (H*D, C)))))
    Result: H x sdpa(q (1, 1, T, D), k and v (1, 1, S, D)), q of head h = rope(linear(x, W[h*D : (h+1)*D]));
            concatenated on the channels before o_proj. The H / G query heads of a group share its k and v.
    Not applied: one head.
    Source: the model card's "MHA -> SHA".
    """

    name: ClassVar[str] = "split_heads"
    by_place: ClassVar[tuple[str, ...] | None] = ()

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        """Split every attention of the part, then write its KV outputs as a concat of heads."""
        heads = _Heads(part.graph)
        nodes = [n for n in part.graph.nodes if n.target in ATTENTION]
        nodes = [n for n in nodes if shape_of(n)[1] > 1]
        for node in nodes:
            _split(part.graph, node, heads)
        if nodes:
            _join_outputs(part, heads)
        return bool(nodes)


def _split(graph: fx.Graph, node: fx.Node, heads: _Heads) -> None:
    q, k, v = node.args[:3]
    count, group = shape_of(q)[1], shape_of(q)[1] // shape_of(k)[1]  # type: ignore[arg-type]
    kwargs = {key: value for key, value in node.kwargs.items() if key != "enable_gqa"}
    outs = []
    for h in range(count):
        parts = (heads.of(q, 1, h), heads.of(k, 1, h // group), heads.of(v, 1, h // group))  # type: ignore[arg-type]
        with graph.inserting_before(node):
            outs.append(insert(graph, node.target, (*parts, *node.args[3:]), f"{name_of(node)}.h{h}", kwargs))  # type: ignore[arg-type]
    joined = _flattened(node)
    with graph.inserting_before(node):
        if joined is None:
            old, new = node, insert(graph, aten.cat.default, (outs, 1), name_of(node))
        else:  # (1, 1, T, D) each to (1, T, H * D): no head axis on the way
            rows = [insert(graph, aten.squeeze.dim, (o, 1), f"{name_of(o)}.rows") for o in outs]
            old, new = joined, insert(graph, aten.cat.default, (rows, -1), name_of(joined))
    old.replace_all_uses_with(new)


def _flattened(node: fx.Node) -> fx.Node | None:
    """The flatten of `flatten(transpose(sdpa, 1, 2), 2)`, where that is how the heads are joined."""
    if len(node.users) != 1:
        return None
    (moved,) = node.users
    if moved.target is not aten.transpose.int or {int(d) % 4 for d in moved.args[1:3]} != {1, 2}:  # type: ignore[arg-type]
        return None
    if len(moved.users) != 1:
        return None
    (flat,) = moved.users
    return flat if flat.target is aten.flatten.using_ints and flat.args[1] == 2 else None


def _join_outputs(part: fx.GraphModule, heads: _Heads) -> None:
    """Write each KV output as a concat of its heads."""
    outputs, io = outputs_of(part), io_of(part)[1]
    for name, node in outputs.items():
        axis = io[name].head_axis
        if axis is None:
            continue
        pieces = [heads.of(node, axis, h) for h in range(shape_of(node)[axis])]
        with part.graph.inserting_before(part.graph.output_node()):
            outputs[name] = insert(part.graph, aten.cat.default, (pieces, axis), name)
    set_outputs(part, outputs, io)


@dataclass
class _Heads:
    """Head h of any value, as nodes in which the head axis has length 1; each is made once."""

    graph: fx.Graph
    made: dict[tuple[fx.Node, int, int], fx.Node] = field(default_factory=dict)
    last_input: fx.Node = field(init=False)

    def __post_init__(self) -> None:
        self.last_input = self.graph.find_nodes(op="placeholder")[-1]

    def of(self, node: fx.Node, axis: int, h: int) -> fx.Node:
        """Head `h` of `node`, whose head axis is `axis`; an input of one head, or of none, is that itself."""
        if node.op == "placeholder" and shape_of(node)[axis] == 1:
            return node
        key = (node, axis, h)
        if key not in self.made:
            self.made[key] = self._make(node, axis, h)
        return self.made[key]

    def _make(self, node: fx.Node, axis: int, h: int) -> fx.Node:
        rank = len(shape_of(node))
        target, args = node.target, node.args
        if target is aten.transpose.int:
            a, b = (int(d) % rank for d in args[1:3])  # type: ignore[arg-type]
            source = {a: b, b: a}.get(axis, axis)
            inner = self.of(args[0], source, h)  # type: ignore[arg-type]
            if {a, b} == {0, axis} or {a, b} == {0, source}:
                return inner  # batch and head: both have length 1 now
            return self._insert(node, target, (inner, a, b), h)
        if target is aten.cat.default:
            dim = int(args[1] if len(args) > 1 else 0) % rank  # type: ignore[arg-type]
            if dim != axis:
                return self._insert(node, target, ([self.of(x, axis, h) for x in args[0]], dim), h)  # type: ignore[arg-type, union-attr]
        if target is aten.slice.Tensor and int(args[1]) % rank != axis:  # type: ignore[arg-type]
            return self._insert(node, target, (self.of(args[0], axis, h), *args[1:]), h)  # type: ignore[arg-type]
        if target is aten.unflatten.int and int(args[1]) % (rank - 1) == axis == rank - 2:  # type: ignore[arg-type]
            rows = self._columns(args[0], h, shape_of(node)[-1])  # type: ignore[arg-type]
            return self._insert(node, aten.unsqueeze.default, (rows, axis), h)
        if target in _ALONG_LAST and axis < rank - 1:
            return self._insert(node, target, tuple(self._operand(x, node, axis, h) for x in args), h, node.kwargs)
        return self._insert(node, aten.slice.Tensor, (node, axis, h, h + 1), h)

    def _operand(self, x: Any, node: fx.Node, axis: int, h: int) -> Any:
        """Head `h` of an operand, or all of it where it is broadcast over heads."""
        if not isinstance(x, fx.Node):
            return x
        own = axis - (len(shape_of(node)) - len(shape_of(x)))
        if own < 0 or shape_of(x)[own] != shape_of(node)[axis]:
            return x
        return self.of(x, own, h)

    def _columns(self, x: fx.Node, h: int, width: int) -> fx.Node:
        """Columns of head `h` on the last axis: rows of the weight where a linear makes them."""
        low, high = h * width, (h + 1) * width
        if x.target is not aten.linear.default:
            return self._insert(x, aten.slice.Tensor, (x, len(shape_of(x)) - 1, low, high), h)
        with self.graph.inserting_before(x):
            params = [
                insert(self.graph, aten.slice.Tensor, (w, 0, low, high), f"{name_of(w)}.h{h}")
                for w in x.args[1:]
                if isinstance(w, fx.Node)
            ]
        return self._insert(x, aten.linear.default, (x.args[0], *params), h)

    def _insert(
        self, after: fx.Node, target: Any, args: tuple[Any, ...], h: int, kwargs: Mapping[str, Any] | None = None
    ) -> fx.Node:
        """Insert behind the node whose head this is."""
        place = self.last_input if after.op == "placeholder" else after
        while place.next.op in ("placeholder", "get_attr"):  # inputs stay together at the top
            place = place.next
        with self.graph.inserting_after(place):
            return insert(self.graph, target, args, f"{name_of(after)}.h{h}", kwargs)
