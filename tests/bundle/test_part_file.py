"""The weight file of a part: packing, places, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_graphs import build_part
from torch import fx

from llmconv import BundleError, LoweringError
from llmconv.bundle.part_file import WeightFile, pack_int4, read_rows, unpack_int4
from llmconv.bundle.part_files import PartFiles
from llmconv.bundle.weights import BundleStore, read_encodings
from llmconv.encodings import Encoded, Encoding, Encodings, WeightEncoding
from llmconv.files import digest
from llmconv.graph import Graph, Model, aten, insert
from llmconv.lowering import LoweringTable, write_onnx
from llmconv.lowering.write import PlacedWeights
from llmconv.quantization import nearest
from llmconv.weights import DictStore

ALIGNMENT = 64
SHAPES = {"w4": (3, 6), "w8": (2, 5), "w16": (4, 3), "w32": (5,), "scalar": (), "blocked": (3, 48)}
ENCODINGS = {
    "w4": WeightEncoding(4),
    "w8": WeightEncoding(8),
    "w16": WeightEncoding(16),
    "blocked": WeightEncoding(4, block=16),
}
MUL: LoweringTable = {
    aten.mul.Tensor: lambda low, node: low.emit("Mul", node, [low.value(node.args[0]), low.weight(node.args[1])])
}


def weights() -> DictStore:
    generator = torch.Generator().manual_seed(0)
    return DictStore({name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()})


@contextmanager
def written(
    path: Path, encodings: Mapping[str, WeightEncoding], store: DictStore | None = None
) -> Iterator[PlacedWeights]:
    with WeightFile(path) as file:
        yield PlacedWeights(file, store or weights(), Encodings(weights=dict(encodings)))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 16, 33])
def test_int4_round_trip(count: int) -> None:
    values = (np.arange(count) * 5 % 16 - 8).astype(np.int8)
    packed = pack_int4(values)
    assert (packed.dtype, packed.size) == (np.uint8, (count + 1) // 2)
    assert unpack_int4(packed, count).tolist() == values.tolist()


def test_first_value_lies_in_the_low_half() -> None:
    assert pack_int4(np.array([[1, -1], [-8, 7]], dtype=np.int8)).tolist() == [0xF1, 0x78]


def test_onnx_reads_the_packing_alike() -> None:
    values = np.array([-8, -1, 0, 7, 3, -5], dtype=np.int8)
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=[6], raw_data=pack_int4(values).tobytes())
    assert numpy_helper.to_array(tensor).astype(np.int8).tolist() == values.tolist()


def test_weights_start_aligned_and_do_not_overlap(tmp_path: Path) -> None:
    with written(tmp_path / "w.data", ENCODINGS) as file:
        placed = [file.place(name) for name in SHAPES]
    end = 0
    for place, shape in zip(placed, SHAPES.values(), strict=True):
        assert place.offset % ALIGNMENT == 0
        assert place.offset >= end
        end = place.offset + place.row_bytes * (shape[0] if shape else 1) + place.scale.nbytes
        if place.multipliers is not None:
            assert place.block_scales == end
            end += 4 * place.multipliers.size  # a float32 for each block, for ONNX
        assert place.shape == shape
    assert (tmp_path / "w.data").stat().st_size == end


@pytest.mark.parametrize(
    ("name", "bits", "row_bytes", "scales", "block"),
    [
        ("w4", 4, 3, 3, 0),
        ("w8", 8, 5, 2, 0),
        ("w16", 16, 6, 1, 0),
        ("w32", 32, 4, 0, 0),
        ("scalar", 32, 4, 0, 0),
        ("blocked", 4, 24, 3, 16),
    ],
)
def test_place_says_how_to_read(tmp_path: Path, name: str, bits: int, row_bytes: int, scales: int, block: int) -> None:
    with written(tmp_path / "w.data", ENCODINGS) as file:
        placed = file.place(name)
    assert (placed.bits, placed.row_bytes, len(placed.scale), placed.block) == (bits, row_bytes, scales, block)
    assert (placed.multipliers is not None) == (block > 0)


def test_weight_is_written_once(tmp_path: Path) -> None:
    with written(tmp_path / "w.data", ENCODINGS) as file:
        first = file.place("w4")
        file.place("w8")
        assert file.place("w4") is first
    with written(tmp_path / "once.data", ENCODINGS) as file:
        file.place("w4")
        file.place("w8")
    assert (tmp_path / "w.data").read_bytes() == (tmp_path / "once.data").read_bytes()


def test_rounding_is_that_of_the_weights_as_they_are_read_back(tmp_path: Path) -> None:
    with written(tmp_path / "w.data", ENCODINGS) as file:
        for name in SHAPES:
            file.place(name)
    assert set(file.file.rounding) == set(ENCODINGS)
    for name, encoding in ENCODINGS.items():
        exact = weights().read(name)
        noise = float((nearest(exact, encoding).dequantize() - exact).square().sum())
        found = file.file.rounding[name]
        assert (found.signal, found.noise) == pytest.approx((float(exact.square().sum()), noise))


def test_rounding_outlives_an_interruption(tmp_path: Path) -> None:
    with PartFiles(tmp_path, weights()) as files:
        places = PlacedWeights(files.open(0, 1), weights(), Encodings(weights=ENCODINGS))
        for name in SHAPES:
            places.place(name)
        hashed, placed = files.written(0)
        assert hashed == {file: digest(file) for file in tmp_path.iterdir()}
        written = json.loads(json.dumps(placed))
        figures = files.figures()
    with PartFiles(tmp_path, weights()) as files:
        files.restore(0, 1, written)
        assert files.figures() == figures
    assert [figures["w4"][key] for key in ("bits", "block", "bytes")] == [4, 0, 3 * 3 + 3 * 4]
    assert 5 < figures["w4"]["sqnr"] < 40
    assert [figures["blocked"][key] for key in ("bits", "block", "bytes")] == [4, 16, 3 * 24 + 3 * 4 + 3 * 3]


def test_a_file_that_is_taken_up_again_holds_the_same_places(tmp_path: Path) -> None:
    with written(tmp_path / "w.data", ENCODINGS) as file:
        for name in SHAPES:
            file.place(name)
    again = WeightFile(tmp_path / "w.data")
    again.restore(json.loads(json.dumps(file.file.index())))
    assert list(again.placed) == list(SHAPES)
    for name, found in again.placed.items():
        was = file.file.placed[name]
        assert (found.grid, found.offset, found.block_scales) == (was.grid, was.offset, was.block_scales)
        np.testing.assert_array_equal(found.scale, was.scale)
        np.testing.assert_array_equal(found.multipliers, was.multipliers)


def test_blocks_are_read_back_as_the_quantizer_gave_them(tmp_path: Path) -> None:
    """Other multipliers than nearest's, and scales at both ends of float32."""
    generator = torch.Generator().manual_seed(1)
    ints = torch.randint(-8, 8, (4, 64), generator=generator, dtype=torch.int8)
    multipliers = torch.randint(1, 17, (4, 4), generator=generator, dtype=torch.uint8)
    scale = torch.tensor([0.37, torch.finfo(torch.float32).tiny, 3e36, 1.0])
    given = Encoded(ints, scale, 0, WeightEncoding(4, block=16).grid, multipliers)
    encodings = Encodings(weights={"w": WeightEncoding(4, block=16)}, quantized={"w": given})
    with WeightFile(tmp_path / "w.data") as file:
        PlacedWeights(file, DictStore({"w": torch.zeros(4, 64)}), encodings).place("w")
    again = WeightFile(tmp_path / "w.data")
    again.restore(json.loads(json.dumps(file.index())))
    placed = again.placed["w"]
    assert placed.multipliers is not None
    assert placed.multipliers.tolist() == multipliers.tolist()
    with (tmp_path / "w.data").open("rb") as raw:
        assert torch.equal(read_rows(raw, placed), given.dequantize())
        assert torch.equal(read_rows(raw, placed, slice(1, 3)), given.rows(1, 3).dequantize())


def test_rows_of_4_bits_must_end_at_a_byte(tmp_path: Path) -> None:
    store = DictStore({"odd": torch.ones(3, 5)})
    with (
        written(tmp_path / "w.data", {"odd": WeightEncoding(4)}, store) as file,
        pytest.raises(LoweringError, match=r"weight 'odd' of shape \[3, 5\] has odd rows"),
    ):
        file.place("odd")


def multiplied(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
    """One product a weight, and one of two rows of w4."""
    rows = insert(graph, aten.slice.Tensor, (nodes["w4"], 0, 1, 3), "w4.rows")
    pairs = {name: (nodes[f"x_{name}"], nodes[name]) for name in SHAPES_2D}
    made = {f"z_{name}": insert(graph, aten.mul.Tensor, pair, f"y_{name}") for name, pair in pairs.items()}
    made["z_rows"] = insert(graph, aten.mul.Tensor, (nodes["x_rows"], rows), "y_rows")
    return made


SHAPES_2D = {name: shape for name, shape in SHAPES.items() if shape}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two graphs of one part over the same weights, written."""
    inputs = {f"x_{name}": shape for name, shape in SHAPES_2D.items()} | {"x_rows": (2, 6)}
    graphs = {name: Graph(name, 1, 1, [build_part(multiplied, inputs, SHAPES_2D)]) for name in ("prompt", "token")}
    encodings = Encodings({"x_w4": Encoding(16, 0.25, 7)}, ENCODINGS)
    model = Model(graphs, weights(), None, encodings)
    write_onnx(model, tmp_path, MUL)
    return tmp_path


@pytest.mark.parametrize("at_once", [1, 12, 1 << 22])
@pytest.mark.parametrize("name", SHAPES_2D)
def test_bundle_holds_exactly_the_fake_quantized_weight(
    bundle: Path, name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmconv.bundle.weights.AT_ONCE", at_once)
    store, plain = BundleStore(bundle), weights().read(name)
    expected = nearest(plain, ENCODINGS[name]).dequantize() if name in ENCODINGS else plain
    assert store.shape(name) == SHAPES[name]
    assert torch.equal(store.read(name), expected)
    assert torch.equal(store.read(name, slice(1, 2)), expected[1:2])


def test_bundle_says_how_a_weight_lies_in_it(bundle: Path) -> None:
    placed = BundleStore(bundle).place("w4")
    assert (placed.bits, placed.row_bytes, placed.shape) == (4, 3, (3, 6))
    assert placed.scale.tolist() == nearest(weights().read("w4"), ENCODINGS["w4"]).scale.tolist()
    blocked, expected = BundleStore(bundle).place("blocked"), nearest(weights().read("blocked"), ENCODINGS["blocked"])
    assert blocked.multipliers is not None
    assert expected.multipliers is not None
    assert blocked.multipliers.tolist() == expected.multipliers.tolist()


def test_bundle_holds_the_encodings_of_values(bundle: Path) -> None:
    assert read_encodings(bundle).values == {"x_w4": Encoding(16, 0.25, 7)}


def test_all_graphs_refer_to_the_same_bytes(bundle: Path) -> None:
    files = sorted((bundle / "onnx").glob("*.onnx"))
    assert [f.name for f in files] == ["prompt_ar1_cl1_1_of_1.onnx", "token_ar1_cl1_1_of_1.onnx"]
    places = []
    for file in files:
        model = onnx.load(file, load_external_data=False)
        stored = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        places.append({t.name: {e.key: e.value for e in t.external_data} for t in stored})
    assert places[0] == places[1]
    assert set(places[0]) == {*SHAPES_2D, "w4[1:3]", "blocked.scale"}
    whole, rows = places[0]["w4"], places[0]["w4[1:3]"]
    assert int(rows["offset"]) == int(whole["offset"]) + 3  # one row of six halves of a byte
    assert int(rows["length"]) == 6


def test_unknown_weight(bundle: Path) -> None:
    with pytest.raises(BundleError, match="holds no weight 'none'"):
        BundleStore(bundle).read("none")


@pytest.mark.parametrize("text", [None, "not json", "[]", "{}"], ids=str)
@pytest.mark.parametrize("read", [BundleStore, read_encodings])
def test_damaged_index(tmp_path: Path, read: type, text: str | None) -> None:
    if text is not None:
        (tmp_path / "encodings.json").write_text(text)
    with pytest.raises(BundleError, match="missing or damaged; convert again"):
        read(tmp_path)
