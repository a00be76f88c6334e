"""Ranges over samples, and which values must share an encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
import torch
from tiny_graphs import build_part, tiny_causal
from torch import fx

from llmconv import PassError
from llmconv.graph import IO, Graph, Model, aten, evaluate, insert, name_of, trace
from llmconv.passes import PassContext
from llmconv.quantization import CALIBRATION, Range, calibrate, sharing_groups
from llmconv.testing import random_weights
from llmconv.weights import DictStore, WeightStore

IDS = {"ids": IO("input_ids"), "logits": IO("logits")}


def collect_ranges(graph: Graph, weights: WeightStore, samples: Sequence[Sequence[int]]) -> dict[str, Range]:
    return calibrate(Model({CALIBRATION: graph}, weights, None), PassContext(samples), {})


def looked_up(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
    rows = insert(graph, aten.embedding.default, (nodes["table"], nodes["ids"]), "rows")
    return {"logits": insert(graph, aten.mul.Tensor, (rows, 2.0), "doubled")}


def lookup() -> Graph:
    """Ids to rows of a table, doubled; two tokens."""
    part = build_part(looked_up, {}, {"table": (4, 2)}, IDS, ids={"ids": (1, 2)})
    return Graph("calibration", 2, 2, [part])


TABLE = DictStore({"table": torch.tensor([[0.0, 1.0], [-2.0, 3.0], [5.0, -7.0], [0.5, 0.5]])})


def test_ranges_are_the_extremes_over_all_samples() -> None:
    ranges = collect_ranges(lookup(), TABLE, [[0, 1], [3, 3], [0, 3]])
    assert ranges["doubled"] == (-4.0, 6.0)


def test_any_row_of_a_table_may_be_looked_up() -> None:
    assert collect_ranges(lookup(), TABLE, [[0, 0]]) == {"rows": (-7.0, 5.0), "doubled": (0.0, 2.0)}


def test_order_of_samples_does_not_matter() -> None:
    samples = [[0, 1], [2, 3], [1, 2]]
    assert collect_ranges(lookup(), TABLE, samples) == collect_ranges(lookup(), TABLE, samples[::-1])


def test_each_sample_starts_anew() -> None:
    module = tiny_causal()
    weights, graph = random_weights(module), trace(module, 4, 4, "calibration")
    samples = [[1, 2, 3, 4], [1, 9, 9, 9]]
    both, apart = collect_ranges(graph, weights, samples), [collect_ranges(graph, weights, [s]) for s in samples]
    assert both
    for name, (low, high) in both.items():
        assert low == min(r[name][0] for r in apart)
        assert high == max(r[name][1] for r in apart)


def test_each_weight_is_read_once_however_many_samples() -> None:
    module = tiny_causal()
    weights, graph = random_weights(module), trace(module, 4, 4, "calibration")
    reads: Counter[str] = Counter()

    class Counted(DictStore):
        def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
            reads[name] += 1
            return super().read(name, rows)

    collect_ranges(graph, Counted(weights.tensors), [[1, 2, 3, 4], [5, 6, 7, 8], [1, 9, 9, 9]])
    assert reads == Counter(weights.tensors.keys())


def test_numbers_that_are_not_finite_are_an_error_that_names_the_value() -> None:
    damaged = DictStore({"table": torch.tensor([[0.0, float("nan")]]).expand(4, 2)})
    with pytest.raises(PassError, match="value 'rows' is not finite"):
        collect_ranges(lookup(), damaged, [[0, 1]])


def test_every_float_value_of_a_traced_graph_has_a_range() -> None:
    module = tiny_causal()
    weights, graph = random_weights(module), trace(module, 4, 4, "calibration")
    ranges = collect_ranges(graph, weights, [[1, 2, 3, 4]])
    floats = {
        name_of(n)
        for n in graph.parts[0].graph.nodes
        if n.op == "call_function" and isinstance(n.meta["val"], torch.Tensor) and n.meta["val"].is_floating_point()
    }
    assert set(ranges) == floats
    ids = torch.tensor([[1, 2, 3, 4]], dtype=torch.int32)
    inputs = {"input_ids": ids, "position_ids": torch.arange(4, dtype=torch.int32)[None]}
    logits = evaluate(graph.parts[0], inputs, weights)["logits"]
    assert ranges["head"] == (logits.min().item(), logits.max().item())


def moved(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
    turned = insert(graph, aten.transpose.int, (nodes["x"], 0, 1), "turned")
    joined = insert(graph, aten.cat.default, ([turned, nodes["y"]], 0), "joined")
    summed = insert(graph, aten.add.Tensor, (joined, 1.0), "summed")
    return {"z": insert(graph, aten.slice.Tensor, (summed, 0, 0, 1), "cut")}


def test_movement_and_concat_share() -> None:
    graph = Graph("g", 1, 1, [build_part(moved, {"x": (2, 3), "y": (1, 2)})])
    groups = {frozenset(g) for g in sharing_groups([graph])}
    assert groups == {frozenset({"x", "turned", "joined", "y"}), frozenset({"summed", "cut"})}


def test_groups_join_across_graphs() -> None:
    def concat(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        return {"z": insert(graph, aten.cat.default, ([nodes["past"], nodes["summed"]], 0), "keys")}

    first = Graph("prompt", 1, 1, [build_part(moved, {"x": (2, 3), "y": (1, 2)})])
    second = Graph("token", 1, 1, [build_part(concat, {"past": (1, 2), "summed": (1, 2)})])
    groups = {frozenset(g) for g in sharing_groups([first, second])}
    assert frozenset({"summed", "cut", "past", "keys"}) in groups
    assert len(groups) == 2


def test_weights_and_ids_belong_to_no_group() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        rows = insert(graph, aten.slice.Tensor, (nodes["table"], 0, 0, 2), "table.h0")
        return {"logits": insert(graph, aten.embedding.default, (rows, nodes["ids"]), "rows")}

    graph = Graph("g", 2, 2, [build_part(body, {}, {"table": (4, 2)}, IDS, ids={"ids": (1, 2)})])
    assert sharing_groups([graph]) == [["rows"]]


@pytest.mark.parametrize("target", [aten.mul.Tensor, aten.matmul.default], ids=str)
def test_computing_ops_do_not_share(target: torch._ops.OpOverload) -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        return {"z": insert(graph, target, (nodes["x"], nodes["y"]), "product")}

    graph = Graph("g", 1, 1, [build_part(body, {"x": (2, 2), "y": (2, 2)})])
    assert sorted(sharing_groups([graph])) == [["product"], ["x"], ["y"]]
