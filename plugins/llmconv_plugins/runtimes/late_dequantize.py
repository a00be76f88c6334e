"""Dequantize late: of a table the rows that are looked up, of weights each right before it is used."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import helper


def with_rows_dequantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed; every number is the same.

    Given:  DequantizeLinear(table, s, z) -> Gather(ids), with one scale for the table, which nothing else takes
    Result: Gather(table, ids) -> DequantizeLinear(s, z)
    """
    graph = model.graph
    tables = {t.name for t in graph.initializer}
    scalars = {t.name for t in graph.initializer if not t.dims}
    used = Counter(name for node in graph.node for name in node.input) + Counter(o.name for o in graph.output)
    whole = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in tables and node.input[1] in scalars
    }
    made, gone = [], set()
    for node in graph.node:
        made.append(node)
        found = whole.get(node.input[0]) if node.op_type == "Gather" else None
        if found is None or used[node.input[0]] > 1:
            continue
        gone.add(found.output[0])
        (result,) = node.output
        node.input[0], node.output[0] = found.input[0], f"{result}.rows"
        made.append(helper.make_node("DequantizeLinear", [node.output[0], *found.input[1:]], [result]))
    del graph.node[:]
    graph.node.extend(node for node in made if not (node.op_type == "DequantizeLinear" and node.output[0] in gone))
    return model


def with_weights_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed, so that ONNX Runtime dequantizes a weight right before the op that takes it.

    It goes from an op to its operands, and computes those first that stand last in the file: behind the values that
    come before it, all weights would be floats before the first op runs.
    """
    graph = model.graph
    stored = {t.name for t in graph.initializer}
    nodes = sorted(graph.node, key=lambda node: not stored.issuperset(filter(None, node.input)) or not node.input)
    del graph.node[:]
    graph.node.extend(nodes)
    return model
