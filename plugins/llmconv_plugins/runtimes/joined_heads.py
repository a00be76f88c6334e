"""Run what each head of an ONNX graph does as one op on all heads: a node costs ONNX Runtime more than its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

LARGE = 1 << 20  # numbers of a joined result: beyond, an op takes longer than to call it
GRIDS = ("QuantizeLinear", "DequantizeLinear")
SUMS = ("Conv", "MatMul")
ELEMENTWISE = ("Add", "Div", "Mul", "Neg", "RMSNormalization", "Sigmoid", "Sub")
Key = tuple[object, ...]
_UNKNOWN = (0,) * 9  # a shape that goes with none


def with_joined_heads(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed: nodes that do the same to different numbers are one node on their numbers, joined on axis 0.

    Given:  Conv(x, W[h]) -> QuantizeLinear(s[h], z[h]) -> ... for each head h, values of shape (1, ...)
    Result: Conv(x, W[h]) -> Concat -> QuantizeLinear(s, z on axis 0) -> ...; convolutions and matmuls stay one each,
            since the order in which they sum goes by shapes and threads. Every number is the same.
    """
    return _Joiner(model).model


class _Joiner:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, graph = model, model.graph
        self._known = {t.name: t for t in graph.initializer}
        self._shapes = {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
            for v in (*graph.input, *graph.value_info, *graph.output)
        }
        self._shapes |= {name: tuple(t.dims) for name, t in self._known.items()}
        self._outputs = {output.name for output in graph.output}
        self._groups: dict[str, tuple[NodeProto, ...]] = {}  # by each result of a group
        self._place: dict[str, int] = {}  # of a result among those alike
        self._made: list[onnx.TensorProto] = []
        self._find()
        nodes = list(self._nodes())
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend(self._made)

    def _find(self) -> None:
        """Which nodes are alike: the same op and constants on operands that are alike or the same."""
        kinds: dict[Key, int] = {}
        kind: dict[str, int] = {}
        alike: dict[int, list[NodeProto]] = {}
        for node in self.model.graph.node:
            number = kinds.setdefault(self._key(node, kind), len(kinds))
            kind |= dict.fromkeys(node.output, number)
            alike.setdefault(number, []).append(node)
        for nodes in alike.values():
            order = {node.output[0]: self._order(node) for node in nodes}
            nodes.sort(key=lambda node: order[node.output[0]])
            self._place |= {node.output[0]: i for i, node in enumerate(nodes)}
            if 1 < len(nodes) == len(set(order.values())) and self._joins(nodes):
                self._groups |= {node.output[0]: tuple(nodes) for node in nodes}

    def _key(self, node: NodeProto, kind: dict[str, int]) -> Key:
        shape = self._shapes.get(node.output[0])
        if shape is None or len(node.output) != 1:
            return (node.output[0],)
        marks = tuple(a.SerializeToString() for a in sorted(node.attribute, key=lambda a: a.name))
        if self._rows(node) is not None:
            return (*self._source(node), marks, shape)
        grid = node.op_type in GRIDS
        taken = [kind.get(n, self._known[n].data_type if grid and n in self._known else n) for n in node.input]
        return (node.op_type, marks, *taken, shape)

    def _rows(self, node: NodeProto) -> tuple[int, int] | None:
        """The rows that a slice along axis 0 gives, or that a weight has of the one that is cut into several."""
        if node.op_type == "DequantizeLinear" and node.input[0] in self._known:
            _, _, rows = node.input[0].rstrip("]").partition("[")
            start, colon, stop = rows.partition(":")
            return (int(start), int(stop)) if colon else None
        if node.op_type == "Slice" and [self._constant(n) for n in node.input[3:]] in ([[0]], [[0], [1]]):
            start, stop = (self._constant(n) for n in node.input[1:3])
            return (start[0], stop[0]) if start and stop and 0 <= start[0] < stop[0] else None
        return None

    def _source(self, node: NodeProto) -> tuple[str, str]:
        return node.op_type, node.input[0].partition("[")[0] if node.op_type in GRIDS else node.input[0]

    def _order(self, node: NodeProto) -> tuple[int, ...]:
        return self._rows(node) or tuple(self._place.get(name, 0) for name in node.input)

    def _constant(self, name: str) -> list[int]:
        return numpy_helper.to_array(self._known[name]).reshape(-1).tolist() if name in self._known else []

    def _whole(self, names: Sequence[str]) -> bool:
        """Whether values are a group's joined one."""
        group = self._groups.get(names[0], ())
        return [n.output[0] for n in group] == list(names)

    def _joins(self, nodes: Sequence[NodeProto]) -> bool:
        """Whether the results of nodes that are alike can be joined."""
        node, shape = nodes[0], self._shapes[nodes[0].output[0]]
        rows = [rows for n in nodes if (rows := self._rows(n))]
        if rows:
            return all(a[1] == b[0] for a, b in pairwise(rows))
        if len(shape) < 2 or shape[0] != 1 or prod(shape) * len(nodes) > LARGE:
            return False
        if node.op_type in SUMS:
            return True
        columns = list(zip(*(n.input for n in nodes), strict=True))
        if node.op_type in GRIDS:
            return (
                self._whole(columns[0])
                and not node.attribute
                and all(len(self._shapes[n]) == 0 for n in node.input[1:])
            )
        joined = [self._whole(column) for column in columns]
        if not any(joined) or any(not j and len(set(c)) > 1 for j, c in zip(joined, columns, strict=True)):
            return False
        first = [self._shapes[c[0]][:1] for j, c in zip(joined, columns, strict=True) if j]
        return all(axis == (1,) for axis in first) and self._takes(node, joined)

    def _takes(self, node: NodeProto, joined: Sequence[bool]) -> bool:
        """Whether a node's op on operands of which some are joined gives the joined results."""
        shape, given = self._shapes[node.output[0]], {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ELEMENTWISE:
            flat = [self._shapes.get(n, _UNKNOWN) for n, j in zip(node.input, joined, strict=True) if not j]
            same = all(len(self._shapes[n]) == len(shape) for n, j in zip(node.input, joined, strict=True) if j)
            return (
                same
                and joined[0] >= (node.op_type == "RMSNormalization")
                and all(len(s) < len(shape) or s[0] == 1 for s in flat)
            )
        if node.op_type == "Transpose":
            return bool(given["perm"][0] == 0)
        if node.op_type == "Concat":
            return all(joined) and given["axis"] % len(shape) != 0
        if node.op_type == "Softmax":
            return bool(given.get("axis", -1) % len(shape))
        if node.op_type == "Slice":
            axes = [axis for name in node.input[3:4] for axis in self._constant(name)]
            return bool(axes) and all(axis % len(shape) for axis in axes)
        return node.op_type == "Reshape" and self._constant(node.input[1])[:1] == [1] and not given

    def _nodes(self) -> Iterator[NodeProto]:
        """The graph's nodes anew, operands first."""
        units = self._units()
        read = Counter(name for unit in units for names in self._taken(unit) for name in names)
        for unit in units:
            if len(unit) == 1:
                yield unit[0]
                continue
            made, apart = self._joined(unit)
            results = [node.output[0] for node in unit]
            yield from (
                node for node in made if node.output[0] != _joined_name(results) or apart or read[node.output[0]]
            )
            if apart and (any(read[name] for name in results) or not self._outputs.isdisjoint(results)):
                yield helper.make_node("Split", [_joined_name(results)], results, axis=0, num_outputs=len(results))

    def _units(self) -> list[tuple[NodeProto, ...]]:
        """Groups and nodes outside groups, operands first."""
        maker = {name: node for node in self.model.graph.node for name in node.output}
        found: dict[int, tuple[NodeProto, ...]] = {}

        def add(node: NodeProto) -> None:
            unit = self._groups.get(node.output[0], (node,))
            if id(unit[0]) in found:
                return
            for name in (name for n in unit for name in n.input):
                if name in maker:
                    add(maker[name])
            found[id(unit[0])] = unit

        for node in self.model.graph.node:
            add(node)
        return list(found.values())

    def _taken(self, unit: Sequence[NodeProto]) -> list[list[str]]:
        """What a unit takes at each place: a value for all, a group's joined one, or one each."""
        columns = [list(column) for column in zip(*(node.input for node in unit), strict=True)]
        if unit[0].op_type in SUMS:
            return columns
        return [[c[0]] if len(set(c)) == 1 else [_joined_name(c)] if self._whole(c) else c for c in columns]

    def _joined(self, group: Sequence[NodeProto]) -> tuple[list[NodeProto], bool]:
        """The nodes that give a group's joined result, and whether they do not give each node's own."""
        node, results = group[0], [n.output[0] for n in group]
        name, taken = _joined_name(results), self._taken(group)
        rows = [rows for n in group if (rows := self._rows(n))]
        if rows and node.op_type in GRIDS:  # of weights, which sums take one by one
            return list(group), False
        if node.op_type in SUMS:
            return [*group, helper.make_node("Concat", results, [name], axis=0)], False
        inputs = [names[0] for names in taken]
        if rows and (rows[0][0], rows[-1][1]) == (0, self._shapes[inputs[0]][0]):
            return [helper.make_node("Identity", inputs[:1], [name])], True
        if rows:
            ends = [self._made_constant(f"{name}.{i}", [end]) for i, end in enumerate((rows[0][0], rows[-1][1]))]
            inputs[1:3] = ends
        elif node.op_type in GRIDS:
            for i, kind in ((1, "scale"), (2, "zero_point")):
                each = [numpy_helper.to_array(self._known[n.input[i]]) for n in group]
                inputs[i] = self._made_constant(f"{name}.{kind}", np.stack(each))
        elif node.op_type == "Reshape":
            inputs[1] = self._made_constant(f"{name}.shape", [len(group), *self._constant(node.input[1])[1:]])
        made = helper.make_node(node.op_type, inputs, [name])
        made.attribute.extend(node.attribute)
        if node.op_type in GRIDS:
            made.attribute.append(helper.make_attribute("axis", 0))
        return [made], True

    def _made_constant(self, name: str, value: object) -> str:
        self._made.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _joined_name(results: Sequence[str]) -> str:
    return f"{results[0]}.heads"
