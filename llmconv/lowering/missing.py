"""What of a model has no lowering, found from its graphs alone, before a weight is read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx

from llmconv.errors import LoweringError
from llmconv.graph.model import MADE_BY, Model, is_weight, name_of


def missing(model: Model, table: Collection[Any]) -> dict[Any, fx.Node]:
    """Each op that is not in the table of lowerings -> the first node of it."""
    found: dict[Any, fx.Node] = {}
    for part in (part for graph in model.graphs.values() for part in graph.parts):
        for node in part.graph.nodes:
            if node.op == "call_function" and node.target not in table and not is_weight(node):
                found.setdefault(node.target, node)
    return found


def require_lowerings(model: Model, table: Collection[Any]) -> None:
    """Check that every op of a model has a lowering.

    Raises:
        LoweringError: names the ops, a node of each, and the pass that made it.
    """
    if found := missing(model, table):
        raise LoweringError("; ".join(without_lowering(node) for node in found.values()) + f"; {REMEDY}")


REMEDY = "add a pass that replaces it, or a plugin whose register_lowerings brings it"


def without_lowering(node: fx.Node) -> str:
    """Names an op, its node, and who made that."""
    maker = f"pass '{node.meta[MADE_BY]}'" if MADE_BY in node.meta else "the source"
    return f"op {node.target} of '{name_of(node)}', which {maker} made, has no lowering"
