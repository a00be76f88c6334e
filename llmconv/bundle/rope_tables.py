"""The tables of cos and sin that a bundle's hosts fill in."""

from __future__ import annotations

from torch import Tensor

from llmconv.graph.model import IO_META, ROTARIES, Model, inputs_of, name_of


def rope_tables(model: Model) -> dict[str, Tensor]:
    """By kind of input, (longest context, R / 2) each, float32: Genie's own where the configuration describes them."""
    graph = max((graph for graph in model.graphs.values() if graph.rope), key=lambda graph: graph.context)
    found: dict[str, Tensor] = {kind: table.contiguous() for kind, table in graph.rope.items()}
    if model.encodings is None or model.config is None:
        return found
    nodes = {node.meta[IO_META].kind: node for part in graph.parts for node in inputs_of(part).values()}
    for (cos, sin), rope in zip(ROTARIES.values(), model.config.ropes, strict=False):
        if rope.gives(found.get(cos), found.get(sin)):
            filled = rope.filled(graph.context, model.encodings.values[name_of(nodes[cos])])
            found |= zip((cos, sin), filled, strict=True)
    return found
