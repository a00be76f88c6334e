"""What AI Hub's compiler reads out of an AIMET package: the QDQ ONNX that its float ONNX and its encodings mean."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from llmconv.bundle.part_file import pack_int4

NORM = ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
SIGNED = {4: TensorProto.INT4, 8: TensorProto.INT8, 32: TensorProto.INT32}
UNSIGNED = {8: TensorProto.UINT8, 16: TensorProto.UINT16}


def only(folder: Path, suffix: str) -> Path:
    """The one file with a suffix; AI Hub refuses a package with none or with several."""
    (file,) = folder.glob(f"*{suffix}")
    return file


def to_qdq(aimet_folder: Path, target_onnx: Path) -> None:
    """Quantize a package's float ONNX with its encodings alone, as `--quantize_full_type --quantize_io` does.

    Weights are rounded with their scales; norms become RMSNormalization, as the local compiler wants them; an
    Identity between two encodings is a change of width; inputs and outputs are integers.

    Args:
        target_onnx: written with its weights in `<stem>.data` beside it.

    Raises:
        KeyError: a tensor has no encoding.
    """
    model = onnx.load(str(only(aimet_folder, ".onnx")), load_external_data=False)
    found = json.loads(only(aimet_folder, ".encodings").read_text())
    assert found["version"] == "1.0.0"
    data = target_onnx.with_suffix(".data")
    with data.open("wb") as stream:
        quantizer = Quantizer(model.graph, found, only(aimet_folder, ".data"), stream, data.name)
        graph = quantizer.run()
    opset = [helper.make_opsetid("", 23)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=11), str(target_onnx))


@dataclass
class Quantizer:
    """One graph on its way from float to QDQ."""

    source: onnx.GraphProto
    found: dict[str, Any]
    weights: Path
    stream: BinaryIO
    location: str
    nodes: list[NodeProto] = field(default_factory=list)
    made: dict[str, TensorProto] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)  # tensor -> what gives it in float
    integers: dict[str, str] = field(default_factory=dict)  # tensor -> its quantized form

    def __post_init__(self) -> None:
        self.encodings = {e["name"]: e for e in self.found["activation_encodings"]}
        self.params = {e["name"]: e for e in self.found["param_encodings"]}
        self.initializers = {t.name: t for t in self.source.initializer}
        self.outputs = [v.name for v in self.source.output]

    def run(self) -> onnx.GraphProto:
        """The QDQ graph."""
        for value in self.source.input:
            (self.floats if value.type.tensor_type.elem_type == TensorProto.INT32 else self.integers)[value.name] = (
                value.name
            )
        norms = {chain[-1].output[0]: chain for chain in self._norms()}
        inside = {node.output[0] for chain in norms.values() for node in chain[:-1]}
        for node in self.source.node:
            if node.output[0] in norms:
                self._norm(norms[node.output[0]])
            elif node.op_type == "Identity":
                self._quantize(self.read(node.input[0]), node.output[0])
            elif node.output[0] not in inside:
                copy = NodeProto()
                copy.CopyFrom(node)
                copy.ClearField("input")
                copy.input.extend(self.read(name) for name in node.input)
                self._emit(copy)
        ports = [[self._port(v) for v in side] for side in (self.source.input, self.source.output)]
        return helper.make_graph(self.nodes, "qdq", *ports, initializer=list(self.made.values()))

    def read(self, name: str) -> str:
        """The float value of a tensor."""
        if name not in self.floats:
            if name in self.initializers:
                self.floats[name] = self._initializer(self.initializers[name])
            else:
                self.floats[name] = self._dequantize(self.integers[name], name, self._value_parameters(name))
        return self.floats[name]

    def _norms(self) -> list[list[NodeProto]]:
        users: dict[str, list[NodeProto]] = {}
        for node in self.source.node:
            for name in node.input:
                users.setdefault(name, []).append(node)
        chains = []
        for node in self.source.node:
            if node.op_type == "Pow":
                chain = [node]
                while chain[-1].op_type != "Mul":
                    (following,) = users[chain[-1].output[0]]
                    chain.append(following)
                assert [n.op_type for n in chain] == NORM
                chains.append(chain)
        return chains

    def _norm(self, chain: list[NodeProto]) -> None:
        epsilon = float(numpy_helper.to_array(self.initializers[chain[2].input[1]]))
        inputs = [self.read(chain[0].input[0]), self.read(chain[-1].input[1])]
        name = chain[-1].output[0]
        self._emit(helper.make_node("RMSNormalization", inputs, [name], name, axis=-1, epsilon=epsilon))

    def _emit(self, node: NodeProto) -> None:
        (name,) = node.output
        node.output[0] = f"{name}.f"
        self.nodes.append(node)
        self._quantize(f"{name}.f", name)

    def _quantize(self, value: str, name: str) -> None:
        self.integers[name] = name if name in self.outputs else f"{name}.q"
        inputs = [value, *self._value_parameters(name)]
        self.nodes.append(helper.make_node("QuantizeLinear", inputs, [self.integers[name]], f"{name}.q"))

    def _dequantize(self, stored: str, name: str, parameters: list[str], **attributes: int) -> str:
        self.nodes.append(
            helper.make_node("DequantizeLinear", [stored, *parameters], [f"{name}.dq"], f"{name}.dq", **attributes)
        )
        return f"{name}.dq"

    def _value_parameters(self, name: str) -> list[str]:
        """Scale and zero point of a value; they are small, so that each has its own."""
        entry = self.encodings[name]
        assert (entry["dtype"], entry["enc_type"]) == ("INT", "PER_TENSOR")
        return self._parameters(name, UNSIGNED[entry["bw"]], entry["scale"][0], -entry["offset"][0])

    def _parameters(self, name: str, kind: int, scale: Any, zero_point: int) -> list[str]:
        scale = np.asarray(scale, dtype=np.float32)
        zeros = np.full(scale.shape, zero_point, dtype=np.int64)
        self.made[f"{name}.scale"] = numpy_helper.from_array(scale, f"{name}.scale")
        self.made[f"{name}.zero_point"] = helper.make_tensor(f"{name}.zero_point", kind, scale.shape, zeros.flatten())
        return [f"{name}.scale", f"{name}.zero_point"]

    def _initializer(self, tensor: TensorProto) -> str:
        if tensor.data_type == TensorProto.INT64:
            self.made[tensor.name] = tensor
            return tensor.name
        if tensor.data_location != TensorProto.EXTERNAL:
            return self._number(tensor)
        entry = self.params[tensor.name]
        bits, scale = entry["bw"], np.array(entry["scale"], dtype=np.float32)
        values = self._values(tensor)
        if entry["enc_type"] == "PER_TENSOR":
            ints = np.rint(values / scale[0]) - entry["offset"][0]
            self._store(tensor, UNSIGNED[bits], np.clip(ints, 0, 2**bits - 1).astype(np.uint16))
            parameters = self._parameters(tensor.name, UNSIGNED[bits], scale[0], -entry["offset"][0])
            return self._dequantize(tensor.name, tensor.name, parameters)
        half = 2 ** (bits - 1)
        assert entry["is_sym"]
        assert entry["offset"] == [-half] * len(scale)
        if entry["enc_type"] == "LPBQ":
            return self._blocks(tensor, entry, values, scale)
        ints = np.clip(np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))), -half, half - 1)
        self._store(tensor, SIGNED[bits], ints.astype(np.int32 if bits == 32 else np.int8))
        parameters = self._parameters(tensor.name, SIGNED[bits], scale, 0)
        return self._dequantize(tensor.name, tensor.name, parameters, axis=0)

    def _blocks(self, tensor: TensorProto, entry: dict[str, Any], values: np.ndarray, scale: np.ndarray) -> str:
        """Integers of few bits, each block's times an integer of the row's scale: together they have `bw` bits."""
        bits, size, rows = entry["compressed_bw"], entry["block_size"], len(scale)
        multipliers = np.array(entry["per_block_int_scale"], np.float32).reshape(rows, -1)
        assert multipliers.shape[1] * size == values[0].size
        assert 1 <= multipliers.min() <= multipliers.max() <= 2 ** (entry["bw"] - bits)
        half, steps = 2 ** (bits - 1), scale[:, None] * multipliers
        each = np.repeat(steps, size, axis=1).reshape(values.shape)
        self._store(tensor, SIGNED[bits], np.clip(np.rint(values / each), -half, half - 1).astype(np.int8))
        shape = (rows, multipliers.shape[1], *values.shape[2:])
        parameters = self._parameters(tensor.name, SIGNED[bits], steps.reshape(shape), 0)
        return self._dequantize(tensor.name, tensor.name, parameters, axis=1, block_size=size)

    def _number(self, tensor: TensorProto) -> str:
        entry = self.encodings[tensor.name]
        values = np.rint(numpy_helper.to_array(tensor) / np.float32(entry["scale"][0])) - entry["offset"][0]
        ints = np.clip(values, 0, 2 ** entry["bw"] - 1).astype(np.uint16)
        self.made[tensor.name] = numpy_helper.from_array(ints, tensor.name)
        return self._dequantize(tensor.name, tensor.name, self._value_parameters(tensor.name))

    def _values(self, tensor: TensorProto) -> np.ndarray:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        assert fields["location"] == self.weights.name
        assert int(fields["length"]) == 4 * np.prod(tensor.dims)
        return np.memmap(self.weights, np.float32, "r", int(fields["offset"]), tuple(tensor.dims))

    def _store(self, tensor: TensorProto, kind: int, ints: np.ndarray) -> None:
        raw = pack_int4(ints).tobytes() if kind == TensorProto.INT4 else ints.tobytes()
        stored = TensorProto(name=tensor.name, data_type=kind, dims=tensor.dims, data_location=TensorProto.EXTERNAL)
        for key, value in {"location": self.location, "offset": self.stream.tell(), "length": len(raw)}.items():
            stored.external_data.add(key=key, value=str(value))
        self.stream.write(raw)
        self.made[tensor.name] = stored

    def _port(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        kind = value.type.tensor_type.elem_type
        if kind == TensorProto.FLOAT:
            kind = UNSIGNED[self.encodings[value.name]["bw"]]
        return helper.make_tensor_value_info(value.name, kind, [d.dim_value for d in value.type.tensor_type.shape.dim])
