"""Tiny QDQ models over one weight file, with the shapes and types that the lowering writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from llmconv_plugins.qnn.compiler import CompileReport

PROMPT, TOKEN = "prompt_ar32_cl128_1_of_2", "token_ar1_cl128_1_of_2"


@dataclass(frozen=True)
class Parts:
    """Files and reports of one tiny part: two graphs together, and each by itself."""

    folder: Path
    shared: CompileReport
    reports: dict[str, CompileReport]

    @property
    def binary(self) -> Path:
        return self.folder / "part_1_of_2.bin"

    def onnx(self, name: str) -> Path:
        return self.folder / f"{name}.onnx"

    def twin(self, name: str) -> Path:
        return self.folder / f"{name}.bin"


CHANNELS = 64
DATA = "part_1_of_1.data"
SCALE = {"hidden": 0.001, "mid": 0.002, "out": 0.0015, "value": 0.25}
ZERO = {"hidden": 32768, "mid": 30000, "out": 32768, "value": 128}


def _external(name: str, dtype: int, dims: tuple[int, ...], offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=dtype, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": DATA, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _encoding(name: str, dtype: str) -> list[TensorProto]:
    kind = {"uint16": TensorProto.UINT16, "uint8": TensorProto.UINT8}[dtype]
    return [
        helper.make_tensor(f"{name}.scale", TensorProto.FLOAT, (), [SCALE[name]]),
        helper.make_tensor(f"{name}.zero_point", kind, (), [ZERO[name]]),
    ]


def write_data(folder: Path, channels: int = CHANNELS) -> list[TensorProto]:
    """Two int4 1×1 convolutions' weights with their scales in one file; returns the initializers that read it."""
    rng = np.random.default_rng(0)
    blob, found = b"", []
    for name in ("w1", "w2"):
        ints = rng.integers(-8, 8, size=channels * channels)
        packed = ((ints[0::2] & 15) | ((ints[1::2] & 15) << 4)).astype(np.uint8).tobytes()
        scale = (0.02 + 0.02 * rng.random(channels)).astype(np.float32).tobytes()
        found.append(_external(name, TensorProto.INT4, (channels, channels, 1, 1), len(blob), len(packed)))
        blob += packed
        found.append(_external(f"{name}.scale", TensorProto.FLOAT, (channels,), len(blob), len(scale)))
        blob += scale
        zero = helper.make_tensor(f"{name}.zero_point", TensorProto.INT4, (channels,), [0] * channels)
        found.append(zero)
    (folder / DATA).write_bytes(blob)
    return found


def _qdq(op: str, source: str, name: str, encoding: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(
        op, [source, f"{encoding}.scale", f"{encoding}.zero_point"], [name], name=f"{op}/{name}", **attributes
    )


def write_graph(
    file: Path, tokens: int, weights: list[TensorProto], variant: str = "", channels: int = CHANNELS
) -> None:
    """`hidden` (1, C, 1, T) through two convolutions to `out` (1, C, 1, T), and `value` (1, 1, T, C), 8 bits of it.

    Variants: "float" goes from 16 to 8 bits in one op, which runs in float; "unsupported" holds an op that QNN lacks.
    """
    shape = (1, channels, 1, tokens)
    nodes = [
        _qdq("DequantizeLinear", "hidden", "hidden.f", "hidden"),
        _qdq("DequantizeLinear", "w1", "w1.f", "w1", axis=0),
        _qdq("DequantizeLinear", "w2", "w2.f", "w2", axis=0),
        helper.make_node("Conv", ["hidden.f", "w1.f"], ["mid.raw"], name="up_proj"),
        _qdq("QuantizeLinear", "mid.raw", "mid.q", "mid"),
        _qdq("DequantizeLinear", "mid.q", "mid.f", "mid"),
        helper.make_node("Conv", ["mid.f", "w2.f"], ["out.raw"], name="down_proj"),
        _qdq("QuantizeLinear", "out.raw", "out", "out"),
        _qdq("DequantizeLinear", "out", "out.f", "out"),
    ]
    if variant == "unsupported":
        nodes[3] = helper.make_node("Acosh", ["hidden.f"], ["mid.raw"], name="layers.0.acosh")
    nodes += [
        helper.make_node("Transpose", ["out.f"], ["turned.raw"], name="turn", perm=[0, 2, 3, 1]),
        _qdq("QuantizeLinear", "turned.raw", "turned", "out"),
        _qdq("DequantizeLinear", "turned", "turned.f", "out"),
    ]
    if variant == "float":
        nodes.append(helper.make_node("Relu", ["turned.f"], ["narrow.raw"], name="layers.0.narrow"))
        nodes.append(_qdq("QuantizeLinear", "narrow.raw", "value", "value"))
    else:
        nodes.append(_qdq("QuantizeLinear", "turned.f", "value", "value"))
    initializers = [*weights, *_encoding("hidden", "uint16"), *_encoding("mid", "uint16")]
    initializers += [*_encoding("out", "uint16"), *_encoding("value", "uint8")]
    graph = helper.make_graph(
        nodes,
        file.stem,
        [helper.make_tensor_value_info("hidden", TensorProto.UINT16, shape)],
        [
            helper.make_tensor_value_info("out", TensorProto.UINT16, shape),
            helper.make_tensor_value_info("value", TensorProto.UINT8, (1, 1, tokens, channels)),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, file)
