"""Editing graphs: replacement by traced PyTorch, insertion, outputs, dead nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from tiny_graphs import build_part
from torch import Tensor, fx

from llmconv import PassError
from llmconv.graph import (
    IO,
    IO_META,
    aten,
    drop_dead,
    evaluate,
    finish,
    inputs_of,
    insert,
    insert_input,
    insert_weight,
    io_of,
    name_of,
    nodes_between,
    outputs_of,
    set_outputs,
    shape_of,
    value_of,
)
from llmconv.graph.edit import graph_module
from llmconv.graph.splice import TraceCache, splice
from llmconv.weights import DictStore

NOTHING = DictStore({})


def relus(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
    """Three relus, the last of another shape."""
    first = insert(graph, aten.relu.default, (nodes["x"],), "first")
    second = insert(graph, aten.relu.default, (first,), "second")
    cut = insert(graph, aten.slice.Tensor, (second, 0, 0, 1), "cut")
    return {"y": insert(graph, aten.relu.default, (cut,), "third")}


def relu_part() -> fx.GraphModule:
    return build_part(relus, {"x": (2, 3)})


def named(part: fx.GraphModule, name: str) -> fx.Node:
    return next(n for n in part.graph.nodes if n.op != "output" and name_of(n) == name)


def names(part: fx.GraphModule) -> list[str]:
    return [name_of(n) for n in part.graph.nodes if n.op == "call_function"]


def run(part: fx.GraphModule, **inputs: Tensor) -> dict[str, Tensor]:
    part.recompile()
    return evaluate(part, inputs, NOTHING)


def by_clamp(x: Tensor) -> Tensor:
    return (x + x.abs()) * 0.5


def test_splice_computes_the_same_under_the_old_name() -> None:
    part = relu_part()
    splice(named(part, "first"), by_clamp, {})
    finish(part)
    assert names(part) == ["first.abs", "first.add", "first", "second", "cut", "third"]
    assert all(shape_of(named(part, n)) == (2, 3) for n in ("first.abs", "first.add", "first"))
    x = torch.tensor([[-1.0, 2.0, 3.0], [4.0, -5.0, 6.0]])
    assert torch.equal(run(part, x=x)["y"], x[:1].relu())


def test_op_that_comes_twice_is_counted() -> None:
    part = relu_part()
    splice(named(part, "first"), lambda x: x.neg().neg().neg(), {})
    assert names(part)[:3] == ["first.neg", "first.neg_1", "first"]


def test_like_nodes_share_one_trace() -> None:
    part, cache, calls = relu_part(), TraceCache(), []

    def counted(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return by_clamp(x)

    for name in ("first", "second", "third"):
        splice(named(part, name), counted, cache)
    assert calls == [(2, 3), (1, 3)]
    assert len(set(names(part))) == len(names(part)) == 10


def test_values_that_are_alike_are_several_arguments() -> None:
    """Like nodes share one fake tensor, and a trace tells arguments apart by theirs."""

    def difference(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        a, b = (insert(graph, aten.relu.default, (nodes[name],), f"{name}.relu") for name in ("x", "z"))
        assert a.meta["val"] is b.meta["val"]
        return {"y": insert(graph, aten.sub.Tensor, (a, b), "difference")}

    part = build_part(difference, {"x": (2,), "z": (2,)})
    splice(named(part, "difference"), lambda a, b: a - b * 2, TraceCache())
    assert run(part, x=torch.tensor([5.0, 6.0]), z=torch.tensor([1.0, 2.0]))["y"].tolist() == [3.0, 2.0]


def test_constants_are_part_of_what_is_alike() -> None:
    def scaled(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        twice = insert(graph, aten.mul.Tensor, (nodes["x"], 2.0), "twice")
        return {"y": insert(graph, aten.mul.Tensor, (twice, 3.0), "thrice")}

    part, cache = build_part(scaled, {"x": (2,)}), TraceCache()
    for name in ("twice", "thrice"):
        splice(named(part, name), lambda x, factor: x / (1 / factor), cache)
    assert run(part, x=torch.tensor([1.0, 2.0]))["y"].tolist() == pytest.approx([6.0, 12.0])


def test_a_name_that_is_taken_is_given_to_no_other_node() -> None:
    part = relu_part()
    splice(named(part, "first"), by_clamp, {}, {"first.add"})
    assert names(part)[:3] == ["first.abs", "first.add_1", "first"]


def test_replacement_may_be_its_own_argument() -> None:
    part = relu_part()
    splice(named(part, "second"), lambda x: x, {})
    finish(part)
    assert names(part) == ["first", "cut", "third"]


@pytest.mark.parametrize("replacement", [lambda x: (x, x), lambda x: [x + 1]], ids=["tuple", "list"])
def test_replacement_must_give_one_tensor(replacement: Callable[[Tensor], Any]) -> None:
    part = relu_part()
    with pytest.raises(PassError, match="the replacement of 'first' must return one tensor"):
        splice(named(part, "first"), replacement, {})


def test_insert_infers_the_value() -> None:
    part = relu_part()
    node = named(part, "first")
    with part.graph.inserting_after(node):
        new = insert(part.graph, aten.transpose.int, (node, 0, 1), "turned")
    assert (name_of(new), shape_of(new), new.prev) == ("turned", (3, 2), node)
    with part.graph.inserting_after(new):
        joined = insert(part.graph, aten.cat.default, ([new, new], 0), "joined")
        normed = insert(part.graph, aten.sum.dim_IntList, (joined, [0]), "normed", {"keepdim": True})
    assert (shape_of(joined), shape_of(normed)) == ((6, 2), (1, 2))


def test_constants_that_are_equal_but_of_another_type_are_not_alike() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        factors = {"whole": 1, "real": 1.0, "truth": True}
        return {name: insert(graph, aten.mul.Tensor, (nodes["ids"], factor), name) for name, factor in factors.items()}

    part = build_part(body, {}, ids={"ids": (2,)})
    assert [value_of(n).dtype for n in outputs_of(part).values()] == [torch.int32, torch.float32, torch.int32]


def test_insert_input_comes_last() -> None:
    part = relu_part()
    like = value_of(named(part, "first"))
    for name in ("mask", "cos"):
        insert_input(part.graph, name, like, (1, 4), IO("attention_mask"))
    assert list(inputs_of(part)) == ["x", "mask", "cos"]
    assert inputs_of(part)["mask"].meta[IO_META] == IO("attention_mask")
    assert shape_of(inputs_of(part)["cos"]) == (1, 4)
    assert run(part, x=torch.ones(2, 3), mask=torch.zeros(1, 4), cos=torch.zeros(1, 4))["y"].shape == (1, 3)


def test_set_outputs_replaces_them_in_order() -> None:
    part = relu_part()
    outputs = {"b": named(part, "cut"), "a": named(part, "first")}
    set_outputs(part, outputs, {"b": IO("hidden"), "a": IO("logits")})
    finish(part)
    assert list(outputs_of(part)) == ["b", "a"]
    assert io_of(part)[1] == {"b": IO("hidden"), "a": IO("logits")}
    assert names(part) == ["first", "second", "cut"]  # third is dead
    assert set(run(part, x=torch.ones(2, 3))) == {"a", "b"}


def test_dead_attention_goes_and_inputs_stay() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        q = nodes["q"]
        insert(graph, aten.scaled_dot_product_attention.default, (q, q, nodes["k"]), "attention")
        return {"y": insert(graph, aten.relu.default, (q,), "kept")}

    part = build_part(body, {"q": (1, 1, 2, 4), "k": (1, 1, 2, 4)})
    drop_dead(part.graph)
    assert names(part) == ["kept"]
    assert list(inputs_of(part)) == ["q", "k"]


def test_finish_finds_a_broken_graph() -> None:
    part = relu_part()
    named(part, "third").append(named(part, "first"))
    with pytest.raises(RuntimeError):
        finish(part)


def test_nodes_between_are_those_that_depend() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        aside = insert(graph, aten.relu.default, (nodes["y"],), "aside")
        early = insert(graph, aten.relu.default, (nodes["x"],), "early")
        return {"z": insert(graph, aten.add.Tensor, (early, aside), "both")}

    part = build_part(body, {"x": (2,), "y": (2,)})
    found = [name_of(n) for n in nodes_between([named(part, "x")], part) if n.op != "output"]
    assert found == ["early", "both"]


def test_value_of_what_is_no_tensor() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        insert(graph, aten.split.Tensor, (nodes["x"], 1), "pieces")
        return {"y": nodes["x"]}

    with pytest.raises(PassError, match="node 'pieces' is not a tensor"):
        value_of(named(build_part(body, {"x": (2,)}), "pieces"))


def test_a_weight_is_inserted_by_its_name() -> None:
    part = build_part(lambda _graph, n: {"y": n["x"]}, {"x": (2, 3)})
    x = part.graph.find_nodes(op="placeholder")[0]
    with part.graph.inserting_after(x):
        weight = insert_weight(part, "layers.0.new.weight", (4, 3))
    with part.graph.inserting_after(weight):
        y = insert(part.graph, aten.linear.default, (x, weight), "y")
    set_outputs(part, {"y": y}, {"y": IO("hidden")})
    finish(part)
    part.recompile()
    assert (name_of(weight), shape_of(weight), shape_of(y)) == ("layers.0.new.weight", (4, 3), (2, 4))
    copied = graph_module(part, part.graph)  # as a pass that splits graphs makes parts
    copied.graph.lint()
    numbers = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    found = evaluate(copied, {"x": torch.ones(2, 3)}, DictStore({"layers.0.new.weight": numbers}))
    torch.testing.assert_close(found["y"], torch.ones(2, 3) @ numbers.T)


def test_a_weight_needs_a_name_of_its_own() -> None:
    part = build_part(lambda _graph, n: {"y": n["x"]}, {"x": (2, 3)}, {"w": (2, 3)})
    with pytest.raises(PassError, match="weight 'w' is to be inserted, but the graph has a value of that name"):
        insert_weight(part, "w", (2, 3))
