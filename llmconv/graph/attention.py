"""How large the largest intermediate of attention is: the scores, (heads, ar, context), of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import fx

from llmconv.graph.model import Graph, aten, name_of, shape_of
from llmconv.graph.sizes import FLOAT_BITS


def score_bytes(graph: Graph, heads: int, widths: Mapping[str, int]) -> dict[str, int] | None:
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


def _scores(node: fx.Node, widths: Mapping[str, int]) -> list[tuple[int, int]]:
    """Elements and bits of the scores that a node makes or takes, if it is attention."""
    if node.target is aten.softmax.int:
        return [(prod(shape_of(node)), widths.get(name_of(node), FLOAT_BITS))]
    if node.target is aten.scaled_dot_product_attention.default:
        q, k = node.args[:2]
        assert isinstance(q, fx.Node)
        assert isinstance(k, fx.Node)
        return [(prod(shape_of(q)[:-1]) * shape_of(k)[-2], FLOAT_BITS)]
    return []
