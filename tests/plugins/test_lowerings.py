"""The lowering table: every op computes in ONNX Runtime what it computes in torch, in float and in integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, fx

from llmconv import LoweringError, PluginError
from llmconv.bundle.part_file import WeightFile
from llmconv.encodings import Encoded, Encoding, Encodings, WeightEncoding
from llmconv.graph import (
    IO,
    IO_META,
    MADE_BY,
    NAME,
    REQUANTIZE,
    aten,
    evaluate,
    finish,
    inputs_of,
    insert,
    is_weight,
    name_of,
    outputs_of,
    set_outputs,
)
from llmconv.lowering import Lowering
from llmconv.lowering.write import PlacedWeights
from llmconv.quantization import nearest
from llmconv.weights import DictStore
from llmconv_plugins.lowerings import TABLE

FP32_ROUNDING = 1e-5  # sums in another order, at values of magnitude 1
SUM_OF_64 = 1e-4  # sums of so many, in another order, at values of magnitude 10
X = (1, 4, 2, 6)


@dataclass(frozen=True)
class Case:
    """One op on values of given shapes, which `args` names: `ids` is int32, names that start with w are weights."""

    op: Any
    args: tuple[Any, ...]
    onnx: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"a": X, "b": X})


def unary(op: Any, *args: Any, onnx: str, shape: tuple[int, ...] = X) -> Case:
    return Case(op, ("a", *args), onnx, {"a": shape})


CASES = {
    "add": Case(aten.add.Tensor, ("a", "b"), onnx="Add"),
    "add_broadcast": Case(aten.add.Tensor, ("a", "b"), "Add", {"a": X, "b": (1, 1, 2, 6)}),
    "sub": Case(aten.sub.Tensor, ("a", "b"), onnx="Sub"),
    "mul": Case(aten.mul.Tensor, ("a", "b"), onnx="Mul"),
    "mul_number": unary(aten.mul.Tensor, 0.125, onnx="Mul"),
    "mul_negative": unary(aten.mul.Tensor, -3.0, onnx="Mul"),
    "div": unary(aten.div.Tensor, 3.0, onnx="Div"),
    "matmul": Case(aten.matmul.default, ("a", "b"), "MatMul", {"a": X, "b": (1, 4, 6, 3)}),
    "sigmoid": unary(aten.sigmoid.default, onnx="Sigmoid"),
    "relu": unary(aten.relu.default, onnx="Relu"),
    "tanh": unary(aten.tanh.default, onnx="Tanh"),
    "gelu": unary(aten.gelu.default, onnx="Gelu"),
    "mean": unary(aten.mean.dim, [-1], True, onnx="ReduceMean"),
    "mean_dropped": unary(aten.mean.dim, [1, 2], onnx="ReduceMean"),
    "neg": unary(aten.neg.default, onnx="Neg"),
    "unsqueeze": unary(aten.unsqueeze.default, -1, onnx="Reshape"),
    "squeeze": unary(aten.squeeze.dim, 0, onnx="Reshape"),
    "squeeze_several": unary(aten.squeeze.dims, [0, 2], onnx="Reshape", shape=(1, 4, 1, 6)),
    "unflatten": unary(aten.unflatten.int, -1, [2, 3], onnx="Reshape"),
    "flatten": unary(aten.flatten.using_ints, 2, onnx="Reshape"),
    "view": unary(aten.view.default, [1, 8, 6], onnx="Reshape"),
    "reshape": unary(aten.reshape.default, [1, 8, -1], onnx="Reshape"),
    "permute": unary(aten.permute.default, [0, 3, 1, 2], onnx="Transpose"),
    "transpose": unary(aten.transpose.int, -1, 1, onnx="Transpose"),
    "slice": unary(aten.slice.Tensor, 3, 1, 4, onnx="Slice"),
    "slice_to_end": unary(aten.slice.Tensor, -1, 2, 2**63 - 1, onnx="Slice"),
    "slice_from_behind": unary(aten.slice.Tensor, -1, -2, None, onnx="Slice"),
    "slice_step": unary(aten.slice.Tensor, -1, 1, 6, 2, onnx="Slice"),
    "cat": Case(aten.cat.default, (["a", "b"], -1), onnx="Concat"),
    "cat_first": Case(aten.cat.default, (["a", "b"],), onnx="Concat"),
    "softmax": unary(aten.softmax.int, -1, onnx="Softmax"),
    "embedding": Case(aten.embedding.default, ("w", "ids"), "Gather", {"ids": (1, 5), "w": (12, 6)}),
    "rms_norm": Case(aten.rms_norm.default, ("a", [6], "w", 1e-3), "RMSNormalization", {"a": (1, 4, 6), "w": (6,)}),
    "rms_norm_default": Case(aten.rms_norm.default, ("a", [6], "w"), "RMSNormalization", {"a": (1, 4, 6), "w": (6,)}),
    "conv": Case(aten.conv2d.default, ("a", "w"), "Conv", {"a": (1, 6, 1, 4), "w": (8, 6, 1, 1)}),
    "conv_bias": Case(
        aten.conv2d.default, ("a", "w", "w_bias"), "Conv", {"a": (1, 6, 1, 4), "w": (8, 6, 1, 1), "w_bias": (8,)}
    ),
    "conv_written_out": Case(
        aten.conv2d.default,
        ("a", "w", None, [1, 1], [0, 0], [1, 1], 1),
        "Conv",
        {"a": (1, 6, 1, 4), "w": (8, 6, 1, 1)},
    ),
}


@dataclass
class Part:
    """A part, its weights, and numbers for its inputs."""

    module: fx.GraphModule
    weights: DictStore
    inputs: dict[str, Tensor]
    nodes: dict[str, fx.Node]


class Builder:
    """Builds a part op by op; ids are int32, names that start with w are weights."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.graph, self.nodes = fx.Graph(), {}
        self.inputs: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            if name == "ids":
                values = torch.randint(12, shape, generator=generator, dtype=torch.int32)
            else:
                values = torch.randn(shape, generator=generator)
            (self.weights if name.startswith("w") else self.inputs)[name] = values
        for name, values in self.inputs.items():
            self.nodes[name] = self.graph.placeholder(name)
            self.nodes[name].meta[IO_META] = IO("input_ids" if name == "ids" else "hidden")
            self._describe(name, values)
        self.root = torch.nn.Module()
        for name, values in self.weights.items():
            self.root.register_parameter(name, torch.nn.Parameter(values.to("meta")))
            self.nodes[name] = self.graph.create_node("get_attr", name)
            self._describe(name, values)

    def _describe(self, name: str, values: Tensor) -> None:
        self.nodes[name].meta |= {NAME: name, "val": values.to("meta")}

    def add(self, name: str, op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Builder:
        self.nodes[name] = insert(self.graph, op, self._resolve(args), name, kwargs)
        return self

    def _resolve(self, args: Any) -> Any:
        if isinstance(args, tuple | list):
            return type(args)(self._resolve(x) for x in args)
        return self.nodes[args] if isinstance(args, str) else args

    def part(self, *outputs: str) -> Part:
        found = {f"out_{name}": self.nodes[name] for name in outputs}
        self.graph.output(found).meta[NAME] = "output"
        module = fx.GraphModule(self.root, self.graph)
        set_outputs(module, found, dict.fromkeys(found, IO("hidden")))
        finish(module)
        return Part(module, DictStore(self.weights), self.inputs, self.nodes)


def part_of(case: Case) -> Part:
    return Builder(case.shapes).add("y", case.op, case.args).part("y")


def lower(part: Part, folder: Path, encodings: Encodings | None = None, table: Any = TABLE) -> onnx.ModelProto:
    """The checked model, also saved as part.onnx beside part.data."""
    with WeightFile(folder / "part.data") as file:
        places = PlacedWeights(file, part.weights, encodings or Encodings())
        lowered = Lowering(part.module, encodings, places, table).run()
    onnx.save(lowered, folder / "part.onnx")
    onnx.checker.check_model(folder / "part.onnx", full_check=True)
    return lowered


def run(folder: Path, inputs: Mapping[str, np.ndarray], name: str = "part.onnx") -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, dict(inputs)), strict=True))


def run_float(part: Part, folder: Path) -> dict[str, np.ndarray]:
    return run(folder, {name: value.numpy() for name, value in part.inputs.items()})


def calibrate(part: Part, bits: Mapping[str, int]) -> Encodings:
    """Every value at 16 bits in its own range, weights at the given widths."""
    values: dict[str, Encoding] = {}

    def observe(node: fx.Node, value: Tensor) -> None:
        if not is_weight(node):
            values[name_of(node)] = Encoding.from_range(float(value.min()), float(value.max()), 16)

    evaluate(part.module, part.inputs, part.weights, observer=observe)
    weights = {name: WeightEncoding(width) for name, width in bits.items()}
    for node in part.module.graph.nodes:
        if node.target is aten.embedding.default:  # a table shares its Gather's encoding, as w4a16 has it
            table = part.weights.read(name_of(node.args[0]))
            shared = Encoding.from_range(float(table.min()), float(table.max()), 16)
            values[name_of(node)] = shared
            weights[name_of(node.args[0])] = WeightEncoding(16, encoding=shared)
    return Encodings(values, weights)


def integers(part: Part, encodings: Encodings) -> dict[str, np.ndarray]:
    """Inputs as the integer graph takes them."""
    return {
        name: encodings.values[name].quantize(value).numpy().astype(encodings.values[name].dtype)
        if name in encodings.values
        else value.numpy()
        for name, value in part.inputs.items()
    }


def steps_apart(part: Part, encodings: Encodings, found: Mapping[str, np.ndarray]) -> int:
    """How many steps of its encoding the largest difference to `evaluate` is, over all outputs."""
    on_grid = {
        name: encodings.values[name].fake_quantize(value) if name in encodings.values else value
        for name, value in part.inputs.items()
    }
    rounded = encodings.weights
    store = DictStore(
        {n: nearest(w, rounded[n]).dequantize() if n in rounded else w for n, w in part.weights.tensors.items()}
    )
    expected = evaluate(part.module, on_grid, store, encodings)
    apart = 0
    for name, node in outputs_of(part.module).items():
        encoding = encodings.values[name_of(node)]
        assert found[name].dtype == np.dtype(encoding.dtype)
        difference = found[name].astype(np.int64) - encoding.quantize(expected[name]).numpy()
        apart = max(apart, int(np.abs(difference).max()))
    return apart


def test_every_op_of_the_table_has_a_case() -> None:
    assert {case.op for case in CASES.values()} | {REQUANTIZE} == set(TABLE)


@pytest.mark.parametrize("name", CASES)
def test_float_ops(name: str, tmp_path: Path) -> None:
    part = part_of(CASES[name])
    model = lower(part, tmp_path)
    assert [node.op_type for node in model.graph.node] == [CASES[name].onnx]
    (found,) = run_float(part, tmp_path).values()
    (expected,) = evaluate(part.module, part.inputs, part.weights).values()
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected.numpy(), atol=FP32_ROUNDING, rtol=0)


CONVOLUTIONS = [name for name, case in CASES.items() if case.op is aten.conv2d.default]
WIDTHS = [(name, bits) for name in CONVOLUTIONS for bits in (4, 8)]
WIDTHS += [(name, 16) for name in CASES if name not in CONVOLUTIONS]


@pytest.mark.parametrize(("name", "weight_bits"), WIDTHS)
def test_quantized_ops(name: str, weight_bits: int, tmp_path: Path) -> None:
    part = part_of(CASES[name])
    encodings = calibrate(part, {w: weight_bits for w in part.weights.tensors if w != "w_bias"})
    lower(part, tmp_path, encodings)
    found = run(tmp_path, integers(part, encodings))
    assert steps_apart(part, encodings, found) <= 1  # a sum that rounds the other way
    assert all(np.ptp(value) > 1000 for value in found.values())  # the range is used, so a step means something


@pytest.mark.parametrize("value", [0.125, -3.0])
def test_constant_of_a_quantized_model_is_exact(value: float, tmp_path: Path) -> None:
    part = part_of(unary(aten.mul.Tensor, value, onnx="Mul"))
    stored = {i.name: numpy_helper.to_array(i) for i in lower(part, tmp_path, calibrate(part, {})).graph.initializer}
    encoding = Encoding.from_range(value, value, 16)
    assert stored[f"c_{value!r}"].tolist() == [65535 if value > 0 else 0]  # an end of the range
    exact = (float(stored[f"c_{value!r}"][0]) - encoding.zero_point) * encoding.scale
    assert exact == pytest.approx(value, rel=1e-7)  # float32; an integer less would be off by 1.5e-5


def test_movement_changes_no_integer(tmp_path: Path) -> None:
    part = (
        Builder({"a": X})
        .add("p", aten.permute.default, ("a", [0, 3, 1, 2]))
        .add("y", aten.slice.Tensor, ("p", 1, 2, 4))
        .part("y")
    )
    encoding = Encoding.from_range(-2.0, 3.0, 16)
    encodings = Encodings(dict.fromkeys(("a", "p", "y"), encoding))
    lower(part, tmp_path, encodings)
    given = integers(part, encodings)
    np.testing.assert_array_equal(run(tmp_path, given)["out_y"], given["a"].transpose(0, 3, 1, 2)[:, 2:4])


def test_requantize_in_float_is_the_value_itself(tmp_path: Path) -> None:
    part = Builder({"a": X}).add("wide", aten.neg.default, ("a",)).add("y", REQUANTIZE, ("wide",)).part("y")
    assert [node.op_type for node in lower(part, tmp_path).graph.node] == ["Neg"]
    np.testing.assert_array_equal(run_float(part, tmp_path)["out_y"], -part.inputs["a"].numpy())


def test_requantize_is_one_change_of_width(tmp_path: Path) -> None:
    part = Builder({"a": X}).add("wide", aten.neg.default, ("a",)).add("y", REQUANTIZE, ("wide",)).part("y")
    encodings = calibrate(part, {})
    encodings.values["y"] = Encoding.from_range(-3.0, 3.0, 8, symmetric=True)
    model = lower(part, tmp_path, encodings)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["DequantizeLinear", "Neg", "QuantizeLinear", "DequantizeLinear", "QuantizeLinear"]
    assert steps_apart(part, encodings, run(tmp_path, integers(part, encodings))) == 0  # nothing is summed
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_rms_norm_is_one_node_of_opset_23(tmp_path: Path) -> None:
    model = lower(part_of(CASES["rms_norm"]), tmp_path)
    (node,) = model.graph.node
    assert (node.op_type, node.domain) == ("RMSNormalization", "")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 23)]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {"axis": -1, "epsilon": pytest.approx(1e-3)}


def test_float_model_of_another_opset_names_its_tensors(tmp_path: Path) -> None:
    part = Builder({"a": X}).add("b", aten.neg.default, ("a",)).add("y", aten.sigmoid.default, ("b",)).part("y")
    with WeightFile(tmp_path / "part.data") as file:
        places = PlacedWeights(file, part.weights, Encodings())
        lowering = Lowering(part.module, None, places, TABLE, opset=17, ir_version=8)
        model = lowering.run()
    assert ([(o.domain, o.version) for o in model.opset_import], model.ir_version) == ([("", 17)], 8)
    assert lowering.tensors() == {"a": "a", "b": "b", "out_y": "y"}


def initializers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def region(tensor: TensorProto) -> tuple[int, int]:
    """Where a tensor's bytes lie in the data file: offset, length."""
    assert tensor.data_location == TensorProto.EXTERNAL
    found = {entry.key: entry.value for entry in tensor.external_data}
    assert found["location"] == "part.data"
    return int(found["offset"]), int(found["length"])


def test_int4_weights_have_an_int4_zero_point(tmp_path: Path) -> None:
    part = part_of(CASES["conv"])
    found = initializers(lower(part, tmp_path, calibrate(part, {"w": 4})))
    assert found["w"].data_type == found["w.zero_point"].data_type == TensorProto.INT4
    assert list(found["w"].dims) == [8, 6, 1, 1]
    assert region(found["w"]) == (0, 8 * 6 // 2)
    assert not numpy_helper.to_array(found["w.zero_point"]).any()
    assert numpy_helper.to_array(found["w.scale"]).shape == (8,)


def test_inputs_and_outputs_are_integers(tmp_path: Path) -> None:
    builder = Builder({"ids": (1, 5), "a": (1, 5, 6), "w": (12, 6)}).add("e", aten.embedding.default, ("w", "ids"))
    part = builder.add("y", aten.add.Tensor, ("e", "a")).add("kv", REQUANTIZE, ("y",)).part("y", "kv")
    encodings = calibrate(part, {})
    encodings.values["kv"] = Encoding.from_range(-3.0, 3.0, 8, symmetric=True)
    model = lower(part, tmp_path, encodings)
    kinds = {t.name: t.type.tensor_type.elem_type for t in (*model.graph.input, *model.graph.output)}
    assert kinds == {
        "ids": TensorProto.INT32,
        "a": TensorProto.UINT16,
        "out_y": TensorProto.UINT16,
        "out_kv": TensorProto.UINT8,
    }
    assert list(inputs_of(part.module)) == [t.name for t in model.graph.input]
    assert steps_apart(part, encodings, run(tmp_path, integers(part, encodings))) <= 1


def convolutions(tokens: int, cuts: list[tuple[int, int]], bias: bool = False, columns: int = 6) -> Part:
    """Convolutions by rows of one weight, as split heads leave them."""
    shapes = {"a": (1, columns, 1, tokens), "w": (8, columns), **({"w_bias": (8,)} if bias else {})}
    builder, names = Builder(shapes), []
    for i, (start, stop) in enumerate(cuts):
        builder.add(f"w.h{i}", aten.slice.Tensor, ("w", 0, start, stop))
        builder.add(f"w.h{i}.k", aten.unsqueeze.default, (f"w.h{i}", -1))
        builder.add(f"w.h{i}.k.k", aten.unsqueeze.default, (f"w.h{i}.k", -1))
        args = ["a", f"w.h{i}.k.k"]
        if bias:
            builder.add(f"w_bias.h{i}", aten.slice.Tensor, ("w_bias", 0, start, stop))
            args.append(f"w_bias.h{i}")
        names.append(f"y{i}")
        builder.add(names[-1], aten.conv2d.default, tuple(args))
    return builder.part(*names)


@pytest.mark.parametrize("bias", [False, True])
def test_rows_of_one_weight_are_regions_of_the_same_bytes(tmp_path: Path, bias: bool) -> None:
    part = convolutions(4, [(0, 4), (4, 2**63 - 1)], bias)  # a slice to the end, as `w[4:]` is traced
    encodings = calibrate(part, {"w": 4})
    found = initializers(lower(part, tmp_path, encodings))
    assert region(found["w[0:4]"]) == (0, 12)
    assert region(found["w[4:8]"]) == (12, 12)
    size = 8 * 6 // 2 + 8 * 4  # int4 integers, then a float32 scale a row
    float_bias = 64 - size + 8 * 4  # at the next multiple of 64
    assert (tmp_path / "part.data").stat().st_size == size + (float_bias if bias else 0)
    assert steps_apart(part, encodings, run(tmp_path, integers(part, encodings))) <= 1


def blocked() -> tuple[Encodings, Encoded, DictStore]:
    """A weight (8, 64) in blocks of 16, its multipliers all but even."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 64, generator=generator) * torch.tensor([1.0, 4.0, 0.1, 2.0]).repeat_interleave(16)
    how = WeightEncoding(4, block=16)
    found = nearest(weight, how)
    assert found.multipliers is not None
    assert len(found.multipliers.unique()) > 4
    return Encodings(weights={"w": how}, quantized={"w": found}), found, DictStore({"w": weight})


@pytest.mark.parametrize("rows", [(0, 8), (2, 7)])
def test_a_weight_in_blocks_is_read_as_it_is_dequantized(tmp_path: Path, rows: tuple[int, int]) -> None:
    encodings, expected, weights = blocked()
    builder = Builder({"a": (rows[1] - rows[0], 64), "w": (8, 64)})
    builder.add("w.h", aten.slice.Tensor, ("w", 0, *rows))
    part = builder.add("y", aten.mul.Tensor, ("a", "w.h")).part("y")
    part.weights = weights
    model = lower(part, tmp_path, encodings)
    found = run(tmp_path, {"a": np.ones((rows[1] - rows[0], 64), np.float32)})["out_y"]
    np.testing.assert_array_equal(found, expected.dequantize()[slice(*rows)].numpy())
    (node,) = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {"axis": 1, "block_size": 16}
    name, start = ("w", 0) if rows == (0, 8) else ("w[2:7]", rows[0])
    stored, count = initializers(model), rows[1] - rows[0]
    assert region(stored[name]) == (start * 32, count * 32)
    assert region(stored[f"{name}.scale"]) == (8 * 32 + 8 * 4 + start * 4 * 4, count * 4 * 4)
    assert stored[f"{name}.zero_point"].data_type == TensorProto.INT4
    assert list(stored[f"{name}.zero_point"].dims) == [count, 4]


@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_by_rows_of_a_weight_in_blocks(tmp_path: Path, bias: bool) -> None:
    encodings, expected, weights = blocked()
    part = convolutions(4, [(0, 3), (3, 8)], bias, columns=64)
    part.weights = DictStore({**part.weights.tensors, **weights.tensors})
    values = calibrate(part, {}).values
    lower(part, tmp_path, Encodings(values, encodings.weights, encodings.quantized))
    found = run(tmp_path, integers(part, Encodings(values)))
    assert steps_apart(part, Encodings(values, encodings.weights), found) <= 1  # a sum that rounds the other way
    float_only = Encodings(weights=encodings.weights, quantized=encodings.quantized)
    lower(part, tmp_path, float_only)
    bare = evaluate(part.module, part.inputs, DictStore({**part.weights.tensors, "w": expected.dequantize()}))
    for name, value in run_float(part, tmp_path).items():
        np.testing.assert_allclose(value, bare[name].numpy(), atol=SUM_OF_64, rtol=0)


def test_float_rows_of_one_weight_too(tmp_path: Path) -> None:
    part = convolutions(4, [(0, 3), (3, 8), (-2, 8)], bias=True)
    found = initializers(lower(part, tmp_path))
    assert region(found["w[3:8]"]) == (3 * 24, 5 * 24)
    expected = evaluate(part.module, part.inputs, part.weights)
    for name, value in run_float(part, tmp_path).items():
        np.testing.assert_allclose(value, expected[name].numpy(), atol=FP32_ROUNDING, rtol=0)


def test_graphs_of_a_part_refer_to_the_same_bytes(tmp_path: Path) -> None:
    prompt, token = convolutions(4, [(0, 4), (4, 8)]), convolutions(1, [(0, 4), (4, 8)])
    token.weights = prompt.weights
    encodings = calibrate(prompt, {"w": 4})
    regions = []
    with WeightFile(tmp_path / "part.data") as file:
        places = PlacedWeights(file, prompt.weights, encodings)
        for name, part in (("prompt", prompt), ("token", token)):
            model = Lowering(part.module, encodings, places, TABLE).run()
            onnx.save(model, tmp_path / f"{name}.onnx")
            regions.append({n: region(t) for n, t in initializers(model).items() if t.external_data})
    assert regions[0] == regions[1] == {"w[0:4]": (0, 12), "w[4:8]": (12, 12)}
    assert (tmp_path / "part.data").stat().st_size == 24 + 32
    for name, part in (("prompt", prompt), ("token", token)):
        assert steps_apart(part, encodings, run(tmp_path, integers(part, encodings), f"{name}.onnx")) <= 1


def fails(part: Part, folder: Path, encodings: Encodings | None = None) -> str:
    with pytest.raises(LoweringError) as caught:
        lower(part, folder, encodings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_op_without_a_lowering_is_named(tmp_path: Path) -> None:
    part = Builder({"a": X}).add("layers.3.act", aten.erf.default, ("a",)).part("layers.3.act")
    assert fails(part, tmp_path) == (
        "op aten.erf.default of 'layers.3.act', which the source made, has no lowering; "
        "add a pass that replaces it, or a plugin whose register_lowerings brings it"
    )


@pytest.mark.parametrize(
    ("stride", "padding", "shape"),
    [([2, 2], [0, 0], (8, 6, 1, 1)), ([1, 1], [1, 1], (8, 6, 1, 1)), ([1, 1], [1, 1], (8, 6, 3, 3))],
)
def test_other_convolutions_are_refused(tmp_path: Path, stride: list, padding: list, shape: tuple) -> None:
    builder = Builder({"a": (1, 6, 4, 4), "w": shape})
    part = builder.add("y", aten.conv2d.default, ("a", "w", None, stride, padding)).part("y")
    assert fails(part, tmp_path) == "'y': only 1×1 convolutions of stride 1 have a lowering"


def test_an_addition_with_a_factor_is_refused(tmp_path: Path) -> None:
    part = Builder({"a": X, "b": X}).add("y", aten.add.Tensor, ("a", "b"), {"alpha": 2}).part("y")
    assert fails(part, tmp_path) == "'y': aten.add.Tensor with alpha has no lowering"


def test_a_weight_that_is_moved_is_refused(tmp_path: Path) -> None:
    builder = Builder({"a": (1, 6, 1, 4), "w": (6, 8, 1, 1)}).add("w.t", aten.permute.default, ("w", [1, 0, 2, 3]))
    part = builder.add("y", aten.conv2d.default, ("a", "w.t")).part("y")
    assert "weight 'w.t' is moved by aten.permute.default, which has no lowering" in fails(part, tmp_path)


@pytest.mark.parametrize("cut", [(1, 0, 6), (-3, 0, 6), (0, 0, 8, 2)])
def test_a_weight_cut_otherwise_than_by_whole_runs_of_rows_is_refused(tmp_path: Path, cut: tuple[int, ...]) -> None:
    builder = Builder({"a": (1, 6, 1, 4), "w": (8, 6, 1, 1)}).add("w.c", aten.slice.Tensor, ("w", *cut))
    part = builder.add("y", aten.conv2d.default, ("a", "w.c")).part("y")
    assert fails(part, tmp_path) == "weight 'w.c' is cut in a way that has no lowering"


def test_a_weight_where_a_value_belongs_is_an_initializer(tmp_path: Path) -> None:
    part = Builder({"a": (1, 4, 6), "w": (6,)}).add("y", aten.mul.Tensor, ("a", "w")).part("y")
    lower(part, tmp_path)
    expected = evaluate(part.module, part.inputs, part.weights)
    np.testing.assert_allclose(run_float(part, tmp_path)["out_y"], expected["out_y"], atol=FP32_ROUNDING, rtol=0)


def test_int4_rows_of_odd_length_are_refused(tmp_path: Path) -> None:
    part = Builder({"a": (1, 5, 1, 4), "w": (8, 5, 1, 1)}).add("y", aten.conv2d.default, ("a", "w")).part("y")
    message = fails(part, tmp_path, calibrate(part, {"w": 4}))
    assert "weight 'w'" in message
    assert "give it 8" in message


def test_a_third_party_s_lowering_is_called(tmp_path: Path) -> None:
    def tanh(low: Lowering, node: fx.Node) -> Any:
        return low.emit("Tanh", node, [low.value(node.args[0])])

    part = Builder({"a": X}).add("y", aten.tanh.default, ("a",)).part("y")
    table: dict[Any, Callable[..., Any]] = {**TABLE, aten.tanh.default: tanh}
    lower(part, tmp_path, table=table)
    expected = torch.tanh(part.inputs["a"]).numpy()
    np.testing.assert_allclose(run_float(part, tmp_path)["out_y"], expected, atol=FP32_ROUNDING, rtol=0)


def test_an_op_of_another_domain(tmp_path: Path) -> None:
    def quick(low: Lowering, node: fx.Node) -> Any:
        return low.emit("QuickGelu", node, [low.value(node.args[0])], domain="com.microsoft", alpha=1.0)

    part = part_of(unary(aten.silu.default, onnx="QuickGelu"))
    model = lower(part, tmp_path, table={**TABLE, aten.silu.default: quick})
    assert {o.domain: o.version for o in model.opset_import} == {"": 23, "com.microsoft": 1}
    (found,) = run_float(part, tmp_path).values()
    np.testing.assert_allclose(found, torch.nn.functional.silu(part.inputs["a"]).numpy(), atol=FP32_ROUNDING)


@pytest.mark.parametrize(
    ("op", "attributes", "said"),
    [
        ("Negg", {}, r"^'y' is lowered to Negg, which ONNX does not have; give its domain, or another op"),
        ("Softmax", {"axes": 1}, r"^'y' is lowered to Softmax with axes; did you mean 'axis'\?"),
    ],
)
def test_an_op_or_attribute_that_onnx_lacks(op: str, attributes: Mapping[str, int], said: str, tmp_path: Path) -> None:
    def wrong(low: Lowering, node: fx.Node) -> Any:
        return low.emit(op, node, [low.value(node.args[0])], **attributes)

    with pytest.raises(LoweringError, match=said):
        lower(part_of(CASES["neg"]), tmp_path, table={**TABLE, aten.neg.default: wrong})


def test_an_error_that_names_no_node_is_given_the_node(tmp_path: Path) -> None:
    def refuses(_low: Lowering, _node: fx.Node) -> Any:
        raise LoweringError("not this one")

    with pytest.raises(LoweringError, match=r"^'y': not this one"):
        lower(part_of(CASES["neg"]), tmp_path, table={**TABLE, aten.neg.default: refuses})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not this one", r"^'y', which pass 'mine' made: not this one$"),
        ("'y' is not for me", r"^'y' is not for me; pass 'mine' made the node$"),
        ("'y' of pass 'mine' is not for me", r"^'y' of pass 'mine' is not for me$"),
    ],
)
def test_an_error_names_the_pass_that_made_the_node(text: str, said: str, tmp_path: Path) -> None:
    def refuses(_low: Lowering, _node: fx.Node) -> Any:
        raise LoweringError(text)

    part = part_of(CASES["neg"])
    part.nodes["y"].meta[MADE_BY] = "mine"
    with pytest.raises(LoweringError, match=said):
        lower(part, tmp_path, table={**TABLE, aten.neg.default: refuses})


def none(_low: Lowering, _node: fx.Node) -> Any:
    return None


def beyond(_low: Lowering, node: fx.Node) -> Any:
    return node.args[7]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (none, r"lowering of aten\.neg\.default at 'y' gave NoneType, not Tensor \(test_lowerings"),
        (beyond, r"lowering of aten\.neg\.default at 'y' failed: IndexError: .*test_lowerings\.py:\d+\)"),
    ],
)
def test_a_lowering_that_fails_is_named_with_its_op_and_node(tmp_path: Path, function: Any, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        lower(part_of(CASES["neg"]), tmp_path, table={**TABLE, aten.neg.default: function})
