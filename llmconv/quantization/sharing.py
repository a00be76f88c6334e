"""Which values must share one encoding."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx

from llmconv.graph.model import Graph, is_weight, name_of
from llmconv.graph.ops import MOVEMENT


def sharing_groups(graphs: Iterable[Graph]) -> list[list[str]]:
    """Names of values that one encoding must cover: those connected by data movement in any of the graphs."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for graph in graphs:
        for part in graph.parts:
            for node in part.graph.nodes:
                if not _is_float(node) or is_weight(node):
                    continue
                find(name_of(node))
                if node.target in MOVEMENT:
                    for source in node.all_input_nodes:
                        parent[find(name_of(source))] = find(name_of(node))
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(find(name), []).append(name)
    return list(groups.values())


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return node.op != "output" and isinstance(value, Tensor) and value.is_floating_point()
