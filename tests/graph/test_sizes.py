"""Bytes of attention's scores, with all heads and as a graph has them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_graphs import HEADS, TinyCausal
from torch import Tensor, fx

from llmconv.graph import NAME, Graph, aten, trace
from llmconv.graph.sizes import score_bytes

AR = 8


@pytest.fixture
def graph() -> Graph:
    with torch.device("meta"):
        module = TinyCausal()
    return trace(module, AR, AR, "prompt")


def test_whole_attention_in_float(graph: Graph) -> None:
    whole = HEADS * AR * AR * 4
    assert score_bytes(graph, HEADS, {}) == {"bits": 32, "all_heads": whole, "largest": whole}


def softmax_of(*shapes: tuple[int, ...]) -> Callable[[], fx.GraphModule]:
    """Softmaxes over values of these shapes."""
    graph = fx.Graph()
    made = []
    for i, shape in enumerate(shapes):
        x = graph.placeholder(f"x{i}")
        node = graph.call_function(aten.softmax.int, (x, -1))
        node.meta = {NAME: f"softmax.h{i}", "val": torch.empty(shape, device="meta")}
        made.append(node)
    graph.output(tuple(made))
    return lambda: fx.GraphModule(torch.nn.Module(), graph)


def test_heads_by_themselves_at_the_bits_of_their_encoding() -> None:
    part = softmax_of((1, 1, 4, 6), (1, 1, 4, 6))()
    found = score_bytes(Graph("g", 4, 6, [part]), 2, {"softmax.h0": 16, "softmax.h1": 16})
    assert found == {"bits": 16, "all_heads": 2 * 4 * 6 * 2, "largest": 4 * 6 * 2}


def test_graph_without_attention() -> None:
    def plain(x: Tensor) -> Tensor:
        return x + 1

    assert score_bytes(Graph("g", 4, 6, [fx.symbolic_trace(plain)]), 2, {}) is None
