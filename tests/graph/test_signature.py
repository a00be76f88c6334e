"""A graph's signature: the same where the same is computed, another where anything of it differs."""

from __future__ import annotations

import pytest

from llmconv.graph import NAME, Graph, Model, aten, trace
from llmconv.graph.signature import signature
from llmconv.passes import PassManager
from llmconv.plugins.registry import Registry
from llmconv.testing import random_weights, tiny_module


def made(ar: int = 4, beside: int = 8) -> Graph:
    """A graph without past after the passes that give it RoPE's tables, beside one of another context."""
    module, registry = tiny_module("gqa"), Registry.load()
    graphs = {"own": trace(module, ar, ar, "own"), "other": trace(module, 1, beside, "other")}
    model = Model(graphs, random_weights(module), config=None)
    PassManager([registry.create("pass", name, {}) for name in ("kv_cache_io", "split_heads", "decompose")]).run(model)
    return model.graphs["own"]


@pytest.fixture(scope="module")
def usual() -> str:
    return signature(made())


def test_what_is_traced_again_beside_another_context_is_the_same(usual: str) -> None:
    assert signature(made(beside=16)) == usual


def test_fx_names_do_not_count(usual: str) -> None:
    graph = made()
    for i, node in enumerate(n for n in graph.parts[0].graph.nodes if n.op == "call_function"):
        node._rename(f"renamed_{i}")
    assert signature(graph) == usual


def test_another_length_is_another(usual: str) -> None:
    assert signature(made(ar=5)) != usual


@pytest.mark.parametrize("change", ["op", "constant", "operand", "name", "table", "cut"])
def test_whatever_differs_makes_another(usual: str, change: str) -> None:
    graph = made()
    (part,) = graph.parts
    nodes = [n for n in part.graph.nodes if n.op == "call_function"]
    if change == "op":
        next(n for n in nodes if n.target is aten.add.Tensor).target = aten.sub.Tensor
    elif change == "constant":
        node = next(n for n in nodes if n.args and isinstance(n.args[-1], int | float))
        node.args = (*node.args[:-1], 7)
    elif change == "operand":
        node = next(n for n in nodes if n.target is aten.add.Tensor and n.args[0] is not n.args[1])
        node.args = (node.args[1], node.args[0])
    elif change == "name":
        nodes[0].meta[NAME] = "another"
    elif change == "table":
        kind, table = next(iter(graph.rope.items()))
        graph.rope[kind] = table + 1
    else:
        graph.parts.append(part)
    assert signature(graph) != usual
