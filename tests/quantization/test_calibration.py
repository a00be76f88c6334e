"""Ranges over samples, and which values must share an encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny_graphs import build_part, tiny_causal
from torch import Tensor, fx

from llmconv import PassError, PluginError
from llmconv.bundle.part_files import PartFiles
from llmconv.encodings import Encoded, Grid, WeightEncoding
from llmconv.graph import IO, Graph, Model, aten, evaluate, insert, name_of, trace
from llmconv.passes import PassContext
from llmconv.quantization import (
    CALIBRATION,
    Magnitudes,
    Moments,
    Nearest,
    Quantizer,
    Range,
    calibrate,
    nearest,
    sharing_groups,
)
from llmconv.quantization import (
    kept as kept_room,
)
from llmconv.testing import random_weights
from llmconv.weights import DictStore, WeightStore
from llmconv.work.steps import Steps

IDS = {"ids": IO("input_ids"), "logits": IO("logits")}


def collect_ranges(graph: Graph, weights: WeightStore, samples: Sequence[Sequence[int]]) -> dict[str, Range]:
    return calibrate(Model({CALIBRATION: graph}, weights, None), PassContext(samples), {})[0]


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
        def read(self, name: str, rows: slice | None = None) -> Tensor:
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


@dataclass(frozen=True)
class Recording(Quantizer):
    """Rounds to nearest, and keeps what it was given, by how many columns the weight has.

    Attributes:
        beside: whether it asks for the float model.
        products: and for those of two columns.
        fails: columns of the weight at which it gives up.
    """

    name: ClassVar[str] = "recording"
    needs_inputs: ClassVar[bool] = True

    beside: bool = False
    products: bool = True
    seen: dict[int, list[Moments | None]] = field(default_factory=dict, repr=False)
    fails: int = field(default=0, repr=False)

    @property
    def needs_float(self) -> bool:
        return self.beside

    @property
    def needs_products(self) -> bool:
        return self.products

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        columns = weight.shape[1]
        if columns == self.fails:
            raise ValueError("enough")
        self.seen.setdefault(columns, []).append(inputs)
        return Nearest().quantize(weight, grid, inputs)


SUMMED = 1e-5  # relative; sums of float32 in another order
NARROW, WIDE, ROWS = 4, 6, 8
FOUR = {"first": WeightEncoding(4), "second": WeightEncoding(4)}
SAMPLES = [[0, 3], [5, 2], [7, 7]]


def first_layer(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
    rows = insert(graph, aten.embedding.default, (nodes["table"], nodes["ids"]), "rows")
    made = insert(graph, aten.linear.default, (rows, nodes["first"]), "made")
    return {"bent": insert(graph, aten.sigmoid.default, (made,), "bent")}


def second_layer(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
    return {"logits": insert(graph, aten.linear.default, (nodes["bent"], nodes["second"]), "last")}


def two_layers(parts: int = 1) -> Graph:
    """Rows of a table, `first` (6, 4), a sigmoid, and `second` (8, 6); of two tokens."""
    ids, shapes = {"ids": (1, 2)}, {"table": (8, NARROW), "first": (WIDE, NARROW), "second": (ROWS, WIDE)}

    def both(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        return second_layer(graph, {**nodes, **first_layer(graph, nodes)})

    if parts == 1:
        return Graph(CALIBRATION, 2, 2, [build_part(both, {}, shapes, IDS, ids)])
    first = build_part(first_layer, {}, {name: shapes[name] for name in ("table", "first")}, IDS, ids)
    second = build_part(second_layer, {"bent": (1, 2, WIDE)}, {"second": shapes["second"]}, IDS)
    return Graph(CALIBRATION, 2, 2, [first, second])


def drawn() -> DictStore:
    generator = torch.Generator().manual_seed(0)
    shapes = {"table": (8, NARROW), "first": (WIDE, NARROW), "second": (ROWS, WIDE)}
    return DictStore({name: 2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def with_quantizer(quantizer: Quantizer, parts: int = 1) -> tuple[dict[str, Range], dict[str, Encoded]]:
    model = Model({CALIBRATION: two_layers(parts)}, drawn(), None)
    return calibrate(model, PassContext(SAMPLES), FOUR, dict.fromkeys(FOUR, quantizer))


def on_grid(name: str) -> Tensor:
    return nearest(drawn().read(name), FOUR[name]).dequantize()


def bent(first: Tensor) -> Tensor:
    """What `second` is multiplied with, (tokens, 6), from all samples."""
    return torch.sigmoid(drawn().read("table")[torch.tensor(SAMPLES).flatten()] @ first.T)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_quantizer_sees_the_inputs_that_the_quantized_weights_before_give(parts: int) -> None:
    quantizer = Recording()
    with_quantizer(quantizer, parts)
    rows, found = drawn().read("table")[torch.tensor(SAMPLES).flatten()], bent(on_grid("first"))
    ((first,), (second,)) = quantizer.seen[NARROW], quantizer.seen[WIDE]
    assert first is not None
    assert second is not None
    assert torch.allclose(first.own, rows.T @ rows, rtol=SUMMED)
    assert torch.allclose(second.own, found.T @ found, rtol=SUMMED)
    exact = bent(drawn().read("first"))
    assert not torch.allclose(second.own, exact.T @ exact, rtol=100 * SUMMED)  # which is something else
    assert (first.cross, second.cross) == (None, None)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_float_model_goes_beside_where_a_quantizer_asks_for_it(parts: int) -> None:
    quantizer = Recording(beside=True)
    with_quantizer(quantizer, parts)
    ((first,), (second,)) = quantizer.seen[NARROW], quantizer.seen[WIDE]
    assert first is not None
    assert second is not None
    assert first.cross is not None
    assert second.cross is not None
    assert torch.equal(first.cross, first.own)  # nothing before it is quantized
    found, exact = bent(on_grid("first")), bent(drawn().read("first"))
    assert torch.allclose(second.own, found.T @ found, rtol=SUMMED)
    assert torch.allclose(second.cross, exact.T @ found, rtol=SUMMED)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_ranges_are_those_of_the_quantized_weights(parts: int, beside: bool) -> None:
    ranges, quantized = with_quantizer(Recording(beside), parts)
    assert set(quantized) == set(FOUR)
    assert all(torch.equal(found.dequantize(), on_grid(name)) for name, found in quantized.items())
    last = bent(on_grid("first")) @ on_grid("second").T
    assert ranges["last"] == pytest.approx((float(last.min()), float(last.max())), rel=SUMMED)
    assert ranges["rows"] == (float(drawn().read("table").min()), float(drawn().read("table").max()))


def test_nearest_alone_leaves_the_text_to_float_weights() -> None:
    ranges, quantized = with_quantizer(Nearest())
    last = bent(drawn().read("first")) @ drawn().read("second").T
    assert ranges["last"] == pytest.approx((float(last.min()), float(last.max())), rel=SUMMED)
    assert quantized == {}


def test_products_of_columns_are_summed_where_one_who_reads_the_value_asks_for_them() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        rows = insert(graph, aten.embedding.default, (nodes["table"], nodes["ids"]), "rows")
        made = {name: insert(graph, aten.linear.default, (rows, nodes[name]), f"by_{name}") for name in FOUR}
        return {"logits": insert(graph, aten.add.Tensor, tuple(made.values()), "sum")}

    shape, table = (WIDE, NARROW), drawn().read("table")
    part = build_part(body, {}, {"table": (8, NARROW), "first": shape, "second": shape}, IDS, ids={"ids": (1, 2)})
    weights = DictStore({"table": table, **dict.fromkeys(FOUR, drawn().read("first"))})
    squares = table[torch.tensor(SAMPLES).flatten()].square().sum(dim=0)
    for one, other in ((False, False), (True, False), (False, True)):
        asking = {"first": Recording(products=one), "second": Recording(products=other)}
        model = Model({CALIBRATION: Graph(CALIBRATION, 2, 2, [part])}, weights, None)
        calibrate(model, PassContext(SAMPLES), FOUR, asking)
        for (seen,) in (quantizer.seen[NARROW] for quantizer in asking.values()):
            assert seen is not None
            assert torch.allclose(seen.importance, squares, rtol=SUMMED)
            assert seen.tensors()["own"].ndim == (2 if one or other else 1)


def test_a_weight_that_two_values_are_multiplied_with_has_no_moments() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        rows = insert(graph, aten.embedding.default, (nodes["table"], nodes["ids"]), "rows")
        once = insert(graph, aten.linear.default, (rows, nodes["square"]), "once")
        return {"logits": insert(graph, aten.linear.default, (once, nodes["square"]), "twice")}

    part = build_part(body, {}, {"table": (8, NARROW), "square": (NARROW, NARROW)}, IDS, ids={"ids": (1, 2)})
    weights = DictStore({"table": drawn().read("table"), "square": drawn().read("first")[:NARROW]})
    quantizer, model = Recording(), Model({CALIBRATION: Graph(CALIBRATION, 2, 2, [part])}, weights, None)
    calibrate(model, PassContext(SAMPLES), {"square": WeightEncoding(4)}, {"square": quantizer})
    assert set(quantizer.seen) == {NARROW}
    assert not any(quantizer.seen[NARROW])


@pytest.mark.parametrize("beside", [False, True])
def test_each_weight_is_read_and_written_once_also_with_quantizers(tmp_path: Path, beside: bool) -> None:
    module = tiny_causal()
    weights, graph = random_weights(module), trace(module, 4, 4, CALIBRATION)
    reads: Counter[str] = Counter()

    class Counted(DictStore):
        def read(self, name: str, rows: slice | None = None) -> Tensor:
            reads[name] += 1
            return super().read(name, rows)

    store = Counted(weights.tensors)
    names = [name for name in weights.tensors if "embed" not in name]
    quantizers = dict.fromkeys(names, Recording(beside))
    with PartFiles(tmp_path, store) as files:
        context = PassContext([[1, 2, 3, 4], [5, 6, 7, 8], [1, 9, 9, 9]], files)
        model = Model({CALIBRATION: graph}, store, None)
        _, kept = calibrate(model, context, dict.fromkeys(names, WeightEncoding(4)), quantizers)
        figures = files.figures()
    assert reads == Counter(weights.tensors.keys())
    assert {name: figure["bits"] for name, figure in figures.items()} == {
        name: 4 if name in names else 32 for name in weights.tensors
    }
    assert kept == {}  # the file has them


@pytest.mark.parametrize(("samples", "writes", "cores"), [(64, True, 1), (65, True, 3), (64, False, 3)])
def test_runs_of_few_tokens_leave_cores_to_what_reads_and_rounds(
    samples: int, writes: bool, cores: int, tmp_path: Path
) -> None:
    class Watching(Magnitudes):
        def observe(self, _node: fx.Node, _value: Tensor) -> None:
            seen.append(torch.get_num_threads())

    seen: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model = Model({CALIBRATION: two_layers(1)}, drawn(), None)
        with PartFiles(tmp_path, model.weights) as files:
            calibrate(model, PassContext([[1, 2]] * samples, files if writes else None), FOUR, {}, Watching())
        assert set(seen) == {cores}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_quantizer_that_fails_is_named_with_its_weight() -> None:
    with pytest.raises(PluginError, match=r"^quantizer 'recording' on weight 'second' failed: ValueError: enough"):
        with_quantizer(Recording(fails=WIDE))


def converted(folder: Path, quantizer: Quantizer, parts: int = 2) -> tuple[dict[str, Range], dict[str, bytes]]:
    """Ranges, and the bytes of the parts' weight files; steps lie in the folder."""
    with PartFiles(folder / "onnx", drawn()) as files:
        model = Model({CALIBRATION: two_layers(parts)}, drawn(), None)
        context = PassContext(SAMPLES, files, Steps(folder, {}))
        ranges, _ = calibrate(model, context, FOUR, dict.fromkeys(FOUR, quantizer))
    return ranges, {file.name: file.read_bytes() for file in (folder / "onnx").iterdir()}


@pytest.mark.parametrize("beside", [False, True])
def test_going_on_after_a_finished_part_ends_as_one_run_does(tmp_path: Path, beside: bool) -> None:
    whole = converted(tmp_path / "whole", Recording(beside))
    with pytest.raises(PluginError, match="weight 'second'"):
        converted(tmp_path / "stopped", Recording(beside, fails=WIDE))
    rest = Recording(beside)
    assert converted(tmp_path / "stopped", rest) == whole
    assert set(rest.seen) == {WIDE}  # the first part is not quantized again
    again = Recording(beside)
    assert converted(tmp_path / "stopped", again) == whole
    assert again.seen == {}


@pytest.mark.parametrize("beside", [False, True])
def test_going_on_inside_a_part_ends_as_one_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    monkeypatch.setattr(kept_room, "RECORDED", 0.0)
    whole = converted(tmp_path / "whole", Recording(beside), parts=1)
    records = {f.name for f in (tmp_path / "whole" / ".steps").iterdir()}
    assert records == {"calibrate_1_of_1.json"}  # what pieces have left is gone with the part's end
    with pytest.raises(PluginError, match="weight 'second'"):
        converted(tmp_path / "stopped", Recording(beside, fails=WIDE), parts=1)
    left = [f.name for f in (tmp_path / "stopped" / ".steps").glob("*piece*.json") if "weights" not in f.name]
    assert len(left) == 1  # the values of one piece alone take room
    rest = Recording(beside)
    assert converted(tmp_path / "stopped", rest, parts=1) == whole
    assert set(rest.seen) == {WIDE}  # what the first layer became is known
    assert {f.name for f in (tmp_path / "stopped" / ".steps").iterdir()} == records


def test_pieces_are_recorded_after_work_that_is_worth_it(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="weight 'second'"):
        converted(tmp_path, Recording(fails=WIDE), parts=1)
    assert list((tmp_path / ".steps").glob("*piece*")) == []
    rest = Recording()
    converted(tmp_path, rest, parts=1)
    assert set(rest.seen) == {NARROW, WIDE}


@pytest.mark.parametrize("damaged", ["*_weights.safetensors", "piece_*.npy"])
def test_a_damaged_record_of_a_piece_begins_the_part_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    monkeypatch.setattr(kept_room, "RECORDED", 0.0)
    whole = converted(tmp_path / "whole", Recording(True), parts=1)
    with pytest.raises(PluginError, match="weight 'second'"):
        converted(tmp_path / "stopped", Recording(True, fails=WIDE), parts=1)
    for file in (tmp_path / "stopped" / ".steps").glob(damaged):
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    rest = Recording(True)
    assert converted(tmp_path / "stopped", rest, parts=1) == whole
    assert set(rest.seen) == {NARROW, WIDE}


def in_memory(folder: Path, quantizer: Quantizer, parts: int) -> tuple[dict[str, Range], dict[str, list[float]]]:
    """Ranges, and the numbers of the weights, which no file takes; steps lie in the folder."""
    model = Model({CALIBRATION: two_layers(parts)}, drawn(), None)
    context = PassContext(SAMPLES, None, Steps(folder, {}))
    ranges, quantized = calibrate(model, context, FOUR, dict.fromkeys(FOUR, quantizer))
    return ranges, {name: encoded.dequantize().flatten().tolist() for name, encoded in quantized.items()}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_what_no_file_takes_is_kept_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int, beside: bool
) -> None:
    monkeypatch.setattr(kept_room, "RECORDED", 0.0)
    whole = in_memory(tmp_path / "whole", Recording(beside), parts)
    with pytest.raises(PluginError, match="weight 'second'"):
        in_memory(tmp_path / "stopped", Recording(beside, fails=WIDE), parts)
    rest = Recording(beside)
    assert in_memory(tmp_path / "stopped", rest, parts) == whole
    assert set(rest.seen) == {WIDE}
    again = Recording(beside)
    assert in_memory(tmp_path / "stopped", again, parts) == whole
    assert again.seen == {}
    other = Recording(beside=not beside)  # begins anew, and leaves nothing of what was there
    in_memory(tmp_path / "stopped", other, parts)
    assert set(other.seen) == {NARROW, WIDE}
    assert len(list((tmp_path / "stopped" / ".steps").iterdir())) == 2 * parts


def test_another_quantizer_begins_anew(tmp_path: Path) -> None:
    converted(tmp_path, Recording())
    other = Recording(beside=True)
    converted(tmp_path, other)
    assert set(other.seen) == {NARROW, WIDE}


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
