"""Where a part is cut for calibration, and that memory then does not grow with the samples."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from tiny_graphs import WIDTH, Mixer, TinyCausal, build_part
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmconv.encodings import Encoded, Grid, WeightEncoding
from llmconv.graph import IO, Graph, Model, aten, inputs_of, insert, name_of, outputs_of, trace
from llmconv.passes import PassContext
from llmconv.quantization import CALIBRATION, Moments, Nearest, Quantizer, Range, calibrate, calibration
from llmconv.quantization.linears import linear_inputs
from llmconv.quantization.segments import segments
from llmconv.testing import random_weights
from llmconv.weights import DictStore

TOKENS, BLOCKS = 4, 3


class Deep(TinyCausal):
    """More than one block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mixer() for _ in range(BLOCKS))


def deep() -> tuple[Graph, DictStore]:
    with torch.device("meta"):
        module = Deep()
    return trace(module, TOKENS, TOKENS, CALIBRATION), random_weights(module)


def samples(count: int) -> list[list[int]]:
    return [[1, *(int(x) for x in row)] for row in torch.arange(count * 3).reshape(count, 3) % 16]


def ranges(count: int, quantizer: Quantizer | None = None) -> dict[str, Range]:
    graph, weights = deep()
    quantizers = {} if quantizer is None else {name: quantizer for name in weights.tensors if "embed" not in name}
    grids = dict.fromkeys(quantizers, WeightEncoding(4))
    return calibrate(Model({CALIBRATION: graph}, weights, None), PassContext(samples(count)), grids, quantizers)[0]


def test_cuts_lie_where_the_residual_stream_alone_goes_on() -> None:
    pieces = segments(deep()[0].parts[0])
    assert [list(outputs_of(p)) for p in pieces] == [["embed"], ["add"], ["add_1"], ["add_2"], []]
    for before, after in pairwise(pieces):
        assert set(inputs_of(after)) - {"input_ids", "position_ids"} == set(outputs_of(before))
    weights = [{str(n.target) for n in p.graph.nodes if n.op == "get_attr"} for p in pieces]
    assert weights[1] == {"blocks.0.qkv.weight", "blocks.0.out.weight"}
    assert sum(map(len, weights)) == len(set().union(*weights))  # none is read twice


def test_a_piece_ends_where_it_is_told_to() -> None:
    part = deep()[0].parts[0]
    read = linear_inputs(part)["blocks.1.out.weight"].value
    pieces = segments(part, {read, "add_2"})
    assert len(pieces) == 3
    assert [list(outputs_of(p))[-1] for p in pieces[:2]] == [read, "add_2"]
    assert set(outputs_of(pieces[0])) == {read, "add"}  # the residual stream goes on beside it
    assert [str(n.target) for n in pieces[2].graph.nodes if n.op == "get_attr"] == ["head.weight"]


def test_a_value_that_a_part_is_given_ends_no_piece() -> None:
    part = deep()[0].parts[0]
    assert len(segments(part, {"input_ids"})) == 1


@pytest.mark.parametrize("after", [(), ("add",), ("add", "blocks.1.out", "add_2")])
def test_segments_compute_every_node_of_the_part(after: tuple[str, ...]) -> None:
    part = deep()[0].parts[0]
    found = {name_of(n) for piece in segments(part, after) for n in piece.graph.nodes if n.op != "output"}
    assert found == {name_of(n) for n in part.graph.nodes if n.op != "output"}


def test_what_leaves_by_the_side_is_computed_where_its_inputs_are() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        x, key = nodes["x"], None
        for i in range(2):
            double = insert(graph, aten.mul.Tensor, (x, 2.0), f"double_{i}")
            key = key or double
            x = insert(graph, aten.add.Tensor, (x, double), f"sum_{i}")
        return {"y": x, "key": insert(graph, aten.neg.default, (key,), "key")}

    io = {"key": IO("new_key", 0)}
    first, second = segments(build_part(body, {"x": (2, 2)}, io=io))
    assert {name_of(n) for n in first.graph.nodes} >= {"double_0", "key", "sum_0"}
    assert (list(outputs_of(first)), list(outputs_of(second))) == (["sum_0"], ["sum_1"])


def test_a_graph_that_no_single_value_carries_is_one_segment() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        x, y = nodes["x"], nodes["y"]
        for i in range(3):
            x = insert(graph, aten.add.Tensor, (x, y), f"x_{i}")
        return {"z": insert(graph, aten.mul.Tensor, (x, y), "z")}

    assert len(segments(build_part(body, {"x": (2, 2), "y": (2, 2)}))) == 1


@pytest.mark.parametrize("tokens", [1, 8, 1000])  # a sample at a time, two, all of them
def test_batches_change_no_range(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ranges(5)
    monkeypatch.setattr(calibration, "BATCH_TOKENS", tokens)
    assert ranges(5) == expected


def test_wide_values_are_run_for_fewer_samples_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, everything = ranges(20), peak(20, None)
    monkeypatch.setattr(calibration, "BATCH_NUMBERS", 1)
    assert ranges(20) == expected
    assert peak(20, None) < everything / 2


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that ops take and give, and that live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self._known[key]

        self.now += size
        self._known[key] = weakref.ref(storage, gone)


def peak(count: int, quantizer: Quantizer | None) -> int:
    with LiveBytes() as live:
        assert ranges(count, quantizer)
    return live.peak


@dataclass(frozen=True)
class Looking(Nearest):
    """Asks for all that there is of a weight's inputs."""

    name: ClassVar[str] = "looking"
    needs_inputs: ClassVar[bool] = True
    needs_float: ClassVar[bool] = True

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        assert inputs is not None
        assert inputs.cross is not None
        return super().quantize(weight, grid, inputs)


@pytest.mark.parametrize("quantizer", [None, Looking()], ids=["ranges", "moments"])
def test_memory_does_not_grow_with_samples(quantizer: Quantizer | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "BATCH_TOKENS", 2 * TOKENS)
    peak(1, quantizer)  # what is made at the first run of all stays
    few = peak(4, quantizer)
    assert few > 2 * TOKENS * WIDTH * 4  # the count sees a batch's values
    assert peak(40, quantizer) == few
    monkeypatch.setattr(calibration, "BATCH_TOKENS", 40 * TOKENS)
    assert peak(40, quantizer) > 2 * few  # and would see those of all samples
