"""What a bundle's files take and give, from the graphs that they are lowered from."""

from __future__ import annotations

from typing import Any

from llmconv.bundle.specs import ONNX_FOLDER, GraphSpec, PartSpec, TensorSpec
from llmconv.graph.model import Graph, Model, inputs_of, io_of, name_of, outputs_of, shape_of, value_of


def graph_spec(model: Model, graph: Graph) -> GraphSpec:
    """A graph as the manifest describes it: every input and output of its parts, as the lowered files have them."""
    parts = []
    for i, part in enumerate(graph.parts):
        io_in, io_out = io_of(part)
        sides = [
            tuple(_tensor_spec(model, name, node, io[name]) for name, node in nodes.items())
            for nodes, io in ((inputs_of(part), io_in), (outputs_of(part), io_out))
        ]
        parts.append(PartSpec(graph.label(i), f"{ONNX_FOLDER}/{graph.label(i)}.onnx", *sides))
    return GraphSpec(graph.name, graph.ar, graph.context, tuple(parts))


def _tensor_spec(model: Model, name: str, node: Any, io: Any) -> TensorSpec:
    encoding = model.encodings.values.get(name_of(node)) if model.encodings else None
    dtype = encoding.dtype if encoding else "float32" if value_of(node).is_floating_point() else "int32"
    return TensorSpec(
        name,
        shape_of(node),
        dtype,
        io.kind,
        io.layer,
        io.head_axis,
        io.token_axis,
        encoding,
    )
