"""Leave out of an ONNX graph the roundings that change nothing: of numbers that lie on that very grid already."""

from __future__ import annotations

from collections import Counter

import onnx

MOVES = {"Concat", "Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
Grid = tuple[str, str]  # the names of scale and zero point


def without_repeated_roundings(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed: where moved numbers were dequantized from a grid, they are not rounded to it again.

    Given:  DequantizeLinear(s, z) -> movement -> QuantizeLinear(s, z) -> DequantizeLinear(s, z)
    Result: DequantizeLinear(s, z) -> movement; outputs of the graph stay integers. Every number is the same.
    """
    graph = model.graph
    outputs = {output.name for output in graph.output}
    on: dict[str, Grid] = {}  # tensors whose numbers lie on a grid
    rounded: dict[str, str] = {}  # integers that a repeated rounding gives -> the numbers before it
    same: dict[str, str] = {}  # numbers that are dequantized from those -> the numbers before it
    kept = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
        if node.op_type == "QuantizeLinear" and on.get(node.input[0]) == tuple(node.input[1:3]):
            rounded[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and len(node.input) == 3:
            if node.input[0] in rounded and node.output[0] not in outputs:
                same[node.output[0]] = rounded[node.input[0]]
                continue
            on[node.output[0]] = (node.input[1], node.input[2])
        elif node.op_type in MOVES:
            moved = node.input if node.op_type == "Concat" else node.input[:1]
            grids = {on.get(name) for name in moved}
            if len(grids) == 1 and (grid := grids.pop()) is not None:
                on |= dict.fromkeys(node.output, grid)
        kept.append(node)
    used = Counter(name for node in kept for name in node.input)
    wanted = [n for n in kept if n.op_type != "QuantizeLinear" or used[n.output[0]] or n.output[0] in outputs]
    del graph.node[:]
    graph.node.extend(wanted)
    return model
