"""Which value each weight is multiplied with, and that value as rows of tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tiny_graphs import VOCABULARY, WIDTH, build_part, tiny_causal
from torch import fx

from llmconv.graph import IO, NAME, aten, insert, trace
from llmconv.quantization.linears import LinearInput, linear_inputs

IDS = {"ids": IO("input_ids")}


def test_linears_of_a_traced_module() -> None:
    (part,) = trace(tiny_causal(), 4, 4, "calibration").parts
    found = linear_inputs(part)
    assert set(found) == {"blocks.0.qkv.weight", "blocks.0.out.weight", "head.weight"}  # none for the table
    assert found["blocks.0.qkv.weight"] == LinearInput("embed", "embed", -1, WIDTH)
    assert found["head.weight"] == LinearInput("add", "add", -1, WIDTH)
    assert VOCABULARY != WIDTH


def test_heads_that_read_one_value_are_one_weight() -> None:
    """Convolutions by rows of one weight, as split heads leave them."""

    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        made = {}
        for i in range(2):
            rows = insert(graph, aten.slice.Tensor, (nodes["w"], 0, 3 * i, 3 * i + 3), f"w.h{i}")
            kernel = rows
            for axis in ("k", "kk"):
                kernel = insert(graph, aten.unsqueeze.default, (kernel, -1), f"w.h{i}.{axis}")
            made[f"y{i}"] = insert(graph, aten.conv2d.default, (nodes["x"], kernel), f"y.h{i}")
        return made

    part = build_part(body, {"x": (1, 4, 1, 2)}, {"w": (6, 4)})
    assert linear_inputs(part) == {"w": LinearInput("x", "x", 1, 4)}


def test_a_part_s_own_input_is_stored_by_its_io_name() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        nodes["x"].meta[NAME] = "layers.0.add"  # what the part before calls it
        y = insert(graph, aten.linear.default, (nodes["x"], nodes["w"]), "y")
        return {"z": insert(graph, aten.linear.default, (y, nodes["v"]), "z")}

    found = linear_inputs(build_part(body, {"x": (1, 2, 4)}, {"w": (6, 4), "v": (3, 6)}))
    assert found == {"w": LinearInput("layers.0.add", "x", -1, 4), "v": LinearInput("y", "y", -1, 6)}


def test_weights_of_another_use_have_no_input() -> None:
    """Two inputs, a bias, a table, a norm, and a weight that stands where the input does."""

    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        x = insert(graph, aten.embedding.default, (nodes["table"], nodes["ids"]), "x")
        norm = insert(graph, aten.rms_norm.default, (x, [4], nodes["gain"]), "norm")
        a = insert(graph, aten.linear.default, (x, nodes["twice"]), "a")
        b = insert(graph, aten.linear.default, (norm, nodes["twice"]), "b")
        c = insert(graph, aten.linear.default, (norm, nodes["once"], nodes["bias"]), "c")
        d = insert(graph, aten.linear.default, (nodes["given"], nodes["once"]), "d")
        return {"a": a, "b": b, "c": c, "d": d}

    shapes = {"table": (8, 4), "gain": (4,), "twice": (3, 4), "once": (3, 4), "bias": (3,), "given": (1, 4)}
    assert linear_inputs(build_part(body, {}, shapes, IDS, ids={"ids": (1, 2)})) == {}

    def alone(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        x = insert(graph, aten.embedding.default, (nodes["table"], nodes["ids"]), "x")
        return {"c": insert(graph, aten.linear.default, (x, nodes["once"], nodes["bias"]), "c")}

    found = linear_inputs(build_part(alone, {}, shapes, IDS, ids={"ids": (1, 2)}))
    assert list(found) == ["once"]


def test_tokens_of_a_convolution_s_and_of_a_linear_s_input() -> None:
    channels_last = torch.arange(24.0).reshape(1, 2, 3, 4)  # (1, H, T, C)
    rows = LinearInput("x", "x", -1, 4).tokens(channels_last)
    assert torch.equal(rows, torch.arange(24.0).reshape(6, 4))
    channels_first = channels_last.permute(0, 3, 1, 2)
    assert torch.equal(LinearInput("x", "x", 1, 4).tokens(channels_first), rows)
