"""Running a part: weights come and go, observers see floats, encodings round."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tiny_graphs import build_part, tiny_causal
from torch import fx

from llmconv.decoding import TorchRunner
from llmconv.encodings import Encoding, Encodings
from llmconv.graph import IO, Graph, aten, evaluate, insert, name_of, trace
from llmconv.graph.run import Program
from llmconv.testing import random_weights
from llmconv.weights import DictStore, HeldStore


@dataclass
class CountingStore:
    """Remembers what was read, and which of it is still alive."""

    store: DictStore
    reads: list[str] = field(default_factory=list)
    given: dict[str, weakref.ref[torch.Tensor]] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        tensor = self.store.read(name, rows).clone()
        self.reads.append(name)
        self.given[name] = weakref.ref(tensor)
        return tensor

    def alive(self) -> set[str]:
        return {name for name, ref in self.given.items() if ref() is not None}


def layers(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
    """linear(linear(linear(x, a), b), a)"""
    x = nodes["x"]
    for name, weight in (("first", "a"), ("second", "b"), ("third", "a")):
        x = insert(graph, aten.linear.default, (x, nodes[weight]), name)
    return {"y": insert(graph, aten.relu.default, (x,), "end")}


WEIGHTS = DictStore({"a": torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "b": torch.tensor([[0.5, 0.0], [0.0, -2.0]])})
X = torch.tensor([[1.0, -1.0]])


@pytest.fixture
def part() -> fx.GraphModule:
    return build_part(layers, {"x": (1, 2)}, {"a": (2, 2), "b": (2, 2)})


def test_outputs_by_name(part: fx.GraphModule) -> None:
    a, b = WEIGHTS.read("a"), WEIGHTS.read("b")
    found = evaluate(part, {"x": X}, WEIGHTS)
    assert set(found) == {"y"}
    assert torch.equal(found["y"], (X @ a.T @ b.T @ a.T).relu())


def test_each_weight_is_read_once(part: fx.GraphModule) -> None:
    store = CountingStore(WEIGHTS)
    evaluate(part, {"x": X}, store)
    assert sorted(store.reads) == ["a", "b"]


def test_weights_are_dropped_after_their_last_use(part: fx.GraphModule) -> None:
    store, alive = CountingStore(WEIGHTS), {}
    evaluate(part, {"x": X}, store, observer=lambda node, _value: alive.update({name_of(node): store.alive()}))
    assert "b" in alive["second"]
    assert alive["end"] == set()


def halves(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
    """x times each half of a weight's rows."""
    rows = [insert(graph, aten.slice.Tensor, (nodes["a"], 0, i, i + 1), f"rows.{i}") for i in range(2)]
    return {f"y{i}": insert(graph, aten.linear.default, (nodes["x"], row), f"y{i}") for i, row in enumerate(rows)}


@pytest.mark.parametrize("limit", [0, 1 << 10])
def test_a_second_run_gives_the_same_and_keeps_no_weight_that_is_not_held(limit: int) -> None:
    store = CountingStore(WEIGHTS)
    program = Program(build_part(halves, {"x": (1, 2)}, {"a": (2, 2)}), HeldStore(store, limit))
    for factor in (1, 3):
        (found,) = program.run([{"x": X * factor}])
        expected = (X * factor @ WEIGHTS.read("a").T).flatten().tolist()
        assert [found[f"y{i}"].item() for i in range(2)] == expected
        assert store.alive() == ({"a"} if limit else set())
    assert store.reads == (["a"] if limit else ["a", "a"])


def test_weights_of_a_traced_graph_live_one_at_a_time() -> None:
    module = tiny_causal()
    graph, store = trace(module, 2, 2, "g"), CountingStore(random_weights(module))
    alive: list[set[str]] = []
    inputs = {name: torch.zeros(1, 2, dtype=torch.int32) for name in ("input_ids", "position_ids")}
    evaluate(graph.parts[0], inputs, store, observer=lambda _node, _value: alive.append(store.alive()))
    assert store.reads == ["embed.weight", "blocks.0.qkv.weight", "blocks.0.out.weight", "head.weight"]
    assert max(len(names) for names in alive) == 1


def test_observer_sees_every_float_before_it_is_rounded(part: fx.GraphModule) -> None:
    seen: dict[str, torch.Tensor] = {}
    encodings = Encodings({"first": Encoding(8, 1.0, 128)})
    evaluate(part, {"x": X * 0.3}, WEIGHTS, encodings, lambda node, value: seen.update({name_of(node): value.clone()}))
    assert set(seen) == {"x", "first", "second", "third", "end"}
    assert torch.equal(seen["first"], X * 0.3 @ WEIGHTS.read("a").T)
    assert torch.equal(seen["second"], seen["first"].round() @ WEIGHTS.read("b").T)


def test_values_without_an_encoding_are_left(part: fx.GraphModule) -> None:
    plain = evaluate(part, {"x": X}, WEIGHTS)["y"]
    assert torch.equal(evaluate(part, {"x": X}, WEIGHTS, Encodings({"other": Encoding(8, 1.0, 0)}))["y"], plain)


def test_inputs_and_outputs_are_rounded_too(part: fx.GraphModule) -> None:
    rough = Encoding(8, 4.0, 128)
    found = evaluate(part, {"x": X}, WEIGHTS, Encodings({"x": rough}))["y"]
    assert torch.equal(found, torch.zeros(1, 2))  # 1 rounds to 0 where the step is 4
    y = evaluate(part, {"x": X * 10}, WEIGHTS, Encodings({"end": rough}))["y"]
    assert torch.equal(y, rough.fake_quantize(evaluate(part, {"x": X * 10}, WEIGHTS)["y"]))


def test_ids_are_not_observed() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        return {"y": insert(graph, aten.embedding.default, (nodes["table"], nodes["ids"]), "rows")}

    part = build_part(body, {}, {"table": (2, 2)}, ids={"ids": (1, 1)})
    seen: list[str] = []
    ids = torch.ones(1, 1, dtype=torch.int32)
    evaluate(part, {"ids": ids}, DictStore({"table": torch.eye(2)}), observer=lambda n, _: seen.append(name_of(n)))
    assert seen == ["rows"]


def test_runner_walks_the_parts_and_hides_what_lies_between() -> None:
    def first(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        return {"between": insert(graph, aten.mul.Tensor, (nodes["mask"], 2.0), "between")}

    def second(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        return {"logits": insert(graph, aten.add.Tensor, (nodes["between"], nodes["mask"]), "sum")}

    io = {"mask": IO("attention_mask"), "logits": IO("logits")}
    parts = [
        build_part(first, {"mask": (1, 2)}, io=io),
        build_part(second, {"between": (1, 2), "mask": (1, 2)}, io=io),
    ]
    runner = TorchRunner(Graph("g", 1, 2, parts), DictStore({}))
    assert (runner.name, runner.ar, runner.context) == ("g", 1, 2)
    assert {name: (t.io.kind, t.shape) for name, t in runner.inputs.items()} == {"mask": ("attention_mask", (1, 2))}
    assert set(runner.outputs) == {"logits"}
    found = runner.run({"mask": np.array([[1.0, 2.0]], dtype=np.float32)})
    assert {name: value.tolist() for name, value in found.items()} == {"logits": [[3.0, 6.0]]}


@pytest.mark.parametrize(
    "options", [(), (None, (2, 2), (1, 0)), (None, (1, 1), (0, 0), (2, 1)), (None, (1, 1), (0, 0), (1, 1), 2)]
)
def test_convolutions_give_what_torch_gives(options: tuple[object, ...]) -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        return {"y": insert(graph, aten.conv2d.default, (nodes["x"], nodes["w"], *options), "conv")}

    groups = 2 if len(options) == 5 else 1
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=generator) for shape in ((1, 4, 5, 5), (6, 4 // groups, 2, 2)))
    part = build_part(body, {"x": tuple(x.shape)}, {"w": tuple(w.shape)})
    expected = aten.conv2d.default(x, w, *options)
    assert torch.allclose(evaluate(part, {"x": x}, DictStore({"w": w}))["y"], expected, atol=1e-6)
