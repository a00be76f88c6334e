"""AIMET packages: complete, on the grid, streamed, and worth the same QDQ graph as ours when a service reads them."""

from __future__ import annotations

import importlib.util
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper
from service_compiler import to_qdq
from tiny_graphs import build_part
from torch import fx

from llmconv import BackendError, Recipe, Registry
from llmconv.backends import BuildJob
from llmconv.bundle import BundleStore
from llmconv.encodings import Encoding, Encodings, WeightEncoding
from llmconv.graph import (
    REQUANTIZE,
    Graph,
    Model,
    aten,
    evaluate,
    inputs_of,
    insert,
    name_of,
    outputs_of,
    shape_of,
    value_of,
)
from llmconv.prepare.resolve import check
from llmconv.prepare.run import prepare
from llmconv.quantization import nearest
from llmconv.target import find
from llmconv.weights import DictStore
from llmconv_plugins.ai_hub.aimet_encodings import LISTS, check_encodings
from llmconv_plugins.ai_hub.float_graph import norm_insides
from llmconv_plugins.ai_hub.package import packaging, write_aimet_package, write_qdq_package
from llmconv_plugins.backends.onnx_backend import OnnxBackend
from llmconv_plugins.chipsets import CHIPSETS
from llmconv_plugins.lowerings import TABLE
from llmconv_plugins.qnn.compiler import GraphJob, compile_part
from llmconv_plugins.qnn.context_binary import TensorInfo, read_info

FP32_ROUNDING = 1e-4  # relative to the largest output; sums in another order, through two layers
PARTS = [(graph, part) for graph in ("prompt", "token") for part in (0, 1)]
GEN2 = {"soc_model": "43", "htp_arch": "73"}


def built(model: Model, folder: Path) -> BuildJob:
    """The job of a backend after `onnx` has built."""
    job = BuildJob(model, folder, find("Galaxy S23 Ultra", CHIPSETS), TABLE, lambda _stage, _item: None)
    OnnxBackend().build(job)
    return job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> BuildJob:
    """The tiny recipe, lowered."""
    recipes = Path(__file__).parents[3] / "recipes"
    checked = check(Recipe.load(recipes / "tiny_llama.toml", ["calibration.samples=2"]), Registry.load())
    model, _, _ = prepare(checked, checked.source.weights(), verify=False)
    return built(model, tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def packages(job: BuildJob) -> Path:
    """A folder with the packages of all parts, unzipped."""
    folder = job.folder / "unzipped"
    for name, part in PARTS:
        target = job.folder / f"{name}_{part}.aimet.zip"
        write_aimet_package(job, job.model.graphs[name], part, target)
        with ZipFile(target) as archive:
            archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def understood(job: BuildJob, packages: Path) -> Path:
    """A folder with what the service makes of all packages, as QDQ ONNX."""
    folder = job.folder / "understood"
    folder.mkdir()
    for name, part in PARTS:
        label = job.model.graphs[name].label(part)
        to_qdq(packages / f"{label}.aimet", folder / f"{label}.onnx")
    return folder


def run(file: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True))


def given(job: BuildJob, graph: str, part: int) -> dict[str, np.ndarray]:
    """Integers for every input, over the whole range of each."""
    generator = np.random.default_rng(part)
    found = {}
    for name, node in inputs_of(job.model.graphs[graph].parts[part]).items():
        encoding = job.model.encodings.values.get(name_of(node))
        top, dtype = (2**encoding.bits, encoding.dtype) if encoding else (job.model.config.vocabulary, "int32")
        found[name] = generator.integers(0, top, shape_of(node)).astype(dtype)
    return found


def dequantized(job: BuildJob, graph: str, part: int, ints: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    known, nodes = job.model.encodings.values, inputs_of(job.model.graphs[graph].parts[part])
    found = {name: known.get(name_of(nodes[name])) for name in ints}
    return {
        name: encoding.dequantize(torch.from_numpy(ints[name].astype(np.int32))).numpy() if encoding else ints[name]
        for name, encoding in found.items()
    }


def files(packages: Path, label: str) -> tuple[onnx.ModelProto, dict]:
    folder = packages / f"{label}.aimet"
    encodings = json.loads((folder / f"{label}.encodings").read_text())
    return onnx.load(folder / f"{label}.onnx", load_external_data=False), encodings


@pytest.mark.parametrize(("graph", "part"), PARTS)
def test_float_onnx(job: BuildJob, packages: Path, graph: str, part: int) -> None:
    label = job.model.graphs[graph].label(part)
    folder = packages / f"{label}.aimet"
    assert sorted(f.name for f in folder.iterdir()) == [f"{label}.{end}" for end in ("data", "encodings", "onnx")]
    onnx.checker.check_model(folder / f"{label}.onnx", full_check=True)
    model, _ = files(packages, label)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    kinds = {node.op_type for node in model.graph.node}
    assert {"Pow", "ReduceMean", "Sqrt", "Identity"} <= kinds
    assert not {k for k in kinds if "Linear" in k or "Norm" in k}
    source = job.model.graphs[graph].parts[part]
    for values, nodes in ((model.graph.input, inputs_of(source)), (model.graph.output, outputs_of(source))):
        assert [v.name for v in values] == list(nodes)
        for value, node in zip(values, nodes.values(), strict=True):
            kind = TensorProto.FLOAT if value_of(node).is_floating_point() else TensorProto.INT32
            assert value.type.tensor_type.elem_type == kind
            assert tuple(d.dim_value for d in value.type.tensor_type.shape.dim) == shape_of(node)


@pytest.mark.parametrize(("graph", "part"), PARTS)
def test_float_onnx_computes_what_the_graph_computes(job: BuildJob, packages: Path, graph: str, part: int) -> None:
    label = job.model.graphs[graph].label(part)
    inputs = dequantized(job, graph, part, given(job, graph, part))
    found = run(packages / f"{label}.aimet" / f"{label}.onnx", inputs)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    expected = evaluate(job.model.graphs[graph].parts[part], tensors, BundleStore(job.folder))
    assert list(found) == list(expected)
    for name, value in expected.items():
        limit = FP32_ROUNDING * float(value.abs().max())
        np.testing.assert_allclose(found[name], value.numpy(), atol=limit, rtol=0)


@pytest.mark.parametrize("part", [0, 1])
def test_graphs_of_a_part_have_the_same_weights(job: BuildJob, packages: Path, part: int) -> None:
    found = []
    for graph in job.model.graphs.values():
        label = graph.label(part)
        model, encodings = files(packages, label)
        places = {
            t.name: {e.key: e.value for e in t.external_data if e.key != "location"}
            for t in model.graph.initializer
            if t.external_data
        }
        params = {entry["name"]: entry for entry in encodings["param_encodings"]}
        assert set(params) == set(places)
        found.append((places, params, (packages / f"{label}.aimet" / f"{label}.data").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize(("graph", "part"), PARTS)
def test_encodings_say_what_ours_say(job: BuildJob, packages: Path, graph: str, part: int) -> None:
    _, encodings = files(packages, job.model.graphs[graph].label(part))
    assert encodings["version"] == "1.0.0"
    for entry in (entry for key in LISTS for entry in encodings[key]):
        assert set(entry) == {"name", "bw", "dtype", "enc_type", "is_sym", "scale", "offset"}
        assert entry["dtype"] == "INT"
        assert len(entry["scale"]) == len(entry["offset"])
        assert entry["enc_type"] == ("PER_CHANNEL" if len(entry["scale"]) > 1 else "PER_TENSOR")
    found = {entry["name"]: entry for entry in encodings["activation_encodings"]}
    source = job.model.graphs[graph].parts[part]
    for name, node in (inputs_of(source) | outputs_of(source)).items():
        if value_of(node).is_floating_point():
            known = job.model.encodings.values[name_of(node)]
            entry = found[name]
            assert (entry["bw"], entry["scale"], entry["offset"]) == (known.bits, [known.scale], [-known.zero_point])
            assert entry["is_sym"] == (known.bits == 8)
    widths = {entry["name"].split("[")[0]: entry["bw"] for entry in encodings["param_encodings"]}
    assert widths == {name: job.model.encodings.weights[name].bits for name in widths}
    assert {4, 16} <= set(widths.values())


@pytest.mark.parametrize("graph", ["prompt", "token"])
def test_missing_and_orphan_encodings_are_named(job: BuildJob, packages: Path, graph: str) -> None:
    label = job.model.graphs[graph].label(1)
    model, encodings = files(packages, label)
    check_encodings(label, model, encodings)
    for key in LISTS:
        for gone in encodings[key][:: len(encodings[key]) // 4]:
            less = {**encodings, key: [entry for entry in encodings[key] if entry is not gone]}
            with pytest.raises(BackendError, match="has no encoding") as caught:
                check_encodings(label, model, less)
            assert f"{label}: tensor '{gone['name']}'" in str(caught.value)
    inside = sorted(norm_insides(model.graph))
    norms = [node for node in model.graph.node if node.op_type == "Pow"]
    assert len(inside) == 7 * len(norms) > 0  # five values, the exponent and epsilon
    for name in ("nothing", inside[0]):
        more = {**encodings, LISTS[0]: [*encodings[LISTS[0]], {**encodings[LISTS[0]][0], "name": name}]}
        with pytest.raises(BackendError, match=f"name '{name}' but its ONNX file has no such"):
            check_encodings(label, model, more)
    twice = {**encodings, LISTS[1]: [*encodings[LISTS[1]], encodings[LISTS[1]][0]]}
    with pytest.raises(BackendError, match="twice"):
        check_encodings(label, model, twice)


def test_value_without_an_encoding_stops_the_package(job: BuildJob, tmp_path: Path) -> None:
    values = dict(job.model.encodings.values)
    name = next(n for n in values if "softmax" in n or "mlp" in n)
    del values[name]
    less = replace(job, model=replace(job.model, encodings=replace(job.model.encodings, values=values)))
    with pytest.raises(BackendError, match=f"tensor '{name}' has no encoding"):
        write_aimet_package(less, job.model.graphs["token"], 0, tmp_path / "t.aimet.zip")
    bare = replace(job, model=replace(job.model, encodings=None))
    with pytest.raises(BackendError, match="needs encodings; add the pass w4a16"):
        write_aimet_package(bare, job.model.graphs["token"], 0, tmp_path / "t.aimet.zip")
    assert list(tmp_path.iterdir()) == []


def integers(folder: Path, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The quantized weights of a QDQ ONNX."""
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            array = onnx.TensorProto()
            array.CopyFrom(tensor)
            onnx.external_data_helper.load_external_data_for_tensor(array, str(folder))
            found[tensor.name] = numpy_helper.to_array(array).astype(np.int32)
    return found


@pytest.mark.parametrize(("graph", "part"), PARTS)
def test_rounding_with_the_scales_alone_gives_our_integers(
    job: BuildJob, understood: Path, graph: str, part: int
) -> None:
    name = f"{job.model.graphs[graph].label(part)}.onnx"
    ours, theirs = (
        integers(folder, onnx.load(folder / name, load_external_data=False))
        for folder in (job.folder / "onnx", understood)
    )
    assert set(ours) == set(theirs)
    assert len(ours) > 10
    for weight, values in ours.items():
        np.testing.assert_array_equal(theirs[weight], values, err_msg=weight)
        assert np.ptp(values) > 4


@pytest.mark.parametrize(("graph", "part"), PARTS)
def test_service_computes_the_same_integers(job: BuildJob, understood: Path, graph: str, part: int) -> None:
    name = f"{job.model.graphs[graph].label(part)}.onnx"
    onnx.checker.check_model(understood / name, full_check=True)
    inputs = given(job, graph, part)
    ours, theirs = run(job.folder / "onnx" / name, inputs), run(understood / name, inputs)
    assert list(ours) == list(theirs)
    for output, values in ours.items():
        np.testing.assert_array_equal(theirs[output], values, err_msg=output)
        assert np.ptp(values.astype(np.int32)) > 20  # of 255 that keys of random hidden states might have


@pytest.mark.slow
def test_local_compiler_takes_what_the_service_reads(job: BuildJob, understood: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime-qnn is not installed")
    labels = {graph.label(1): graph.parts[1] for graph in job.model.graphs.values()}
    together = compile_part(
        [GraphJob(understood / f"{label}.onnx", label) for label in labels], tmp_path / "part.bin", **GEN2
    )
    read = {graph.name: graph for graph in read_info(tmp_path / "part.bin").graphs}
    assert set(read) == set(labels)
    for label, source in labels.items():
        for tensors, nodes in ((read[label].inputs, inputs_of(source)), (read[label].outputs, outputs_of(source))):
            assert {tensor.name: tensor for tensor in tensors} == {
                n: as_read(job, n, node) for n, node in nodes.items()
            }
    ours = [GraphJob(job.folder / "onnx" / f"{label}.onnx", label) for label in labels]
    assert together.binary_bytes == pytest.approx(
        compile_part(ours, tmp_path / "ours.bin", **GEN2).binary_bytes, rel=0.02
    )  # int4 stayed int4, and both graphs share it


def as_read(job: BuildJob, name: str, node: fx.Node) -> TensorInfo:
    """An input or output as the manifest has it."""
    encoding = job.model.encodings.values[name_of(node)]
    fields = (shape_of(node), encoding.dtype, encoding.scale, -encoding.zero_point, encoding.bits)
    return TensorInfo(name, *fields)


def test_same_bytes_and_a_key_that_follows_the_content(job: BuildJob, packages: Path, tmp_path: Path) -> None:
    graph = job.model.graphs["token"]
    write_aimet_package(job, graph, 0, tmp_path / "again.aimet.zip")
    assert (tmp_path / "again.aimet.zip").read_bytes() == (job.folder / "token_0.aimet.zip").read_bytes()
    aimet, qdq = packaging("aimet"), packaging("qdq")
    keys = [aimet.key(job, graph, 0), aimet.key(job, graph, 1), aimet.key(job, job.model.graphs["prompt"], 0)]
    assert len({*keys, qdq.key(job, graph, 0)}) == 4
    assert [f.name for f in tmp_path.iterdir()] == ["again.aimet.zip"]


def test_qdq_package_is_the_onnx_folder_as_it_is(job: BuildJob, tmp_path: Path) -> None:
    graph = job.model.graphs["token"]
    write_qdq_package(job, graph, 1, tmp_path / "p.onnx.zip")
    with ZipFile(tmp_path / "p.onnx.zip") as archive:
        archive.extractall(tmp_path)
    folder, label = tmp_path / f"{graph.label(1)}.onnx", graph.label(1)
    assert sorted(f.name for f in folder.iterdir()) == ["part_2_of_2.data", f"{label}.onnx"]
    assert (folder / f"{label}.onnx").read_bytes() == (job.folder / "onnx" / f"{label}.onnx").read_bytes()
    assert (folder / "part_2_of_2.data").read_bytes() == (job.folder / "onnx" / "part_2_of_2.data").read_bytes()
    onnx.checker.check_model(folder / f"{label}.onnx")


def convolution(weights: DictStore, folder: Path, bits: int = 4, block: int = 0) -> BuildJob:
    """One part that is one convolution with a bias, its result at 8 bits too."""
    rows, columns = weights.shape("w")[:2]
    shapes = {"w": weights.shape("w"), "bias": (rows,)}

    def body(graph, nodes):
        made = insert(graph, aten.conv2d.default, (nodes["x"], nodes["w"], nodes["bias"]), "y")
        return {"out": made, "narrow": insert(graph, REQUANTIZE, (made,), "y.narrow")}

    part = build_part(body, {"x": (1, columns, 1, 2)}, shapes)
    wide = Encoding.from_range(-8.0, 9.0, 16)
    values = {"x": wide, "y": wide, "y.narrow": Encoding.from_range(-8.0, 8.0, 8, symmetric=True)}
    encodings = Encodings(values, {"w": WeightEncoding(bits, block)})
    return built(Model({"g": Graph("g", 2, 2, [part])}, weights, None, encodings), folder)


@pytest.mark.parametrize(("columns", "block"), [(4, 0), (32, 16)])
def test_bias_and_8_bits(tmp_path: Path, columns: int, block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, columns, 1, 1, generator=generator) * 2 / columns**0.5
    weights = DictStore({"w": weight, "bias": torch.randn(6, generator=generator)})
    job = convolution(weights, tmp_path, block=block)
    graph = job.model.graphs["g"]
    write_aimet_package(job, graph, 0, tmp_path / "g.aimet.zip")
    with ZipFile(tmp_path / "g.aimet.zip") as archive:
        archive.extractall(tmp_path)
    to_qdq(tmp_path / f"{graph.label(0)}.aimet", tmp_path / "theirs.onnx")
    inputs = {"x": np.random.default_rng(0).integers(0, 65536, (1, columns, 1, 2)).astype(np.uint16)}
    ours, theirs = run(tmp_path / "onnx" / f"{graph.label(0)}.onnx", inputs), run(tmp_path / "theirs.onnx", inputs)
    assert {name: value.dtype for name, value in ours.items()} == {"out": np.uint16, "narrow": np.uint8}
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name], value)
        assert len(np.unique(value)) > 6


def test_entry_of_a_weight_in_blocks(tmp_path: Path) -> None:
    weights = {"w": torch.linspace(-3, 5, 6 * 32).reshape(6, 32, 1, 1), "bias": torch.zeros(6)}
    job = convolution(DictStore(weights), tmp_path, block=16)
    write_aimet_package(job, job.model.graphs["g"], 0, tmp_path / "g.aimet.zip")
    with ZipFile(tmp_path / "g.aimet.zip") as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".encodings")]
        params = {entry["name"]: entry for entry in json.loads(archive.read(name))["param_encodings"]}
    expected = nearest(weights["w"], WeightEncoding(4, block=16))
    assert expected.multipliers is not None
    assert params["w"] == {
        "name": "w",
        "bw": 8,
        "dtype": "INT",
        "enc_type": "LPBQ",
        "is_sym": True,
        "scale": expected.scale.tolist(),
        "offset": [-128] * 6,
        "compressed_bw": 4,
        "per_block_int_scale": expected.multipliers.flatten().tolist(),
        "block_size": 16,
    }
    step = job.model.encodings.values["x"].scale
    assert params["bias"]["scale"] == pytest.approx([scale * step for scale in expected.scale.tolist()])


@pytest.mark.parametrize("bits", [4, 8])
def test_wide_weight_is_streamed(tmp_path: Path, bits: int) -> None:
    rows, columns = 2048, 4096
    generator = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(rows, columns, 1, 1, generator=generator), "bias": torch.zeros(rows)}
    job = convolution(DictStore(weights), tmp_path, bits)
    tracemalloc.start()
    write_aimet_package(job, job.model.graphs["g"], 0, tmp_path / "g.aimet.zip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = 4 * rows * columns
    assert peak < size / 2
    with ZipFile(tmp_path / "g.aimet.zip") as archive:
        data = archive.getinfo("g_ar2_cl2_1_of_1.aimet/g_ar2_cl2_1_of_1.data")
    assert data.file_size == size + 4 * rows
    assert data.compress_size < rows * columns * (1.1 if bits == 4 else 1.9)  # a byte or two a weight, instead of four
