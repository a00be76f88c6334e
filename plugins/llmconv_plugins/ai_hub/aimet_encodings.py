"""The `.encodings` file of an AIMET package, format 1.0.0, and the check that it fits its ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from llmconv import BackendError
from llmconv.encodings import Encoding
from llmconv_plugins.ai_hub.float_graph import FloatPart, FloatWeights, norm_insides

VERSION = "1.0.0"
LISTS = ("activation_encodings", "param_encodings")

_BIAS_BITS = 32
_BLOCK_BITS = 8  # that 4-bit integers times a multiplier of 16 have
_SYMMETRIC_BITS = 8  # AIMET marks an 8-bit KV cache symmetric; 16-bit values stay unsigned


def aimet_encodings(part: FloatPart, values: Mapping[str, Encoding]) -> dict[str, Any]:
    """The encodings of a part's inputs, op outputs, weights and constants, by the names of its ONNX file.

    Offsets are negative zero points of unsigned integers, also for signed weights (AIMET's convention): a symmetric
    one of b bits has -2 ** (b - 1).

    Args:
        values: encodings by structural name.
    """
    found = {name: values[known] for name, known in part.names.items() if known in values}
    activations = [_of_value(name, encoding) for name, encoding in found.items()]
    inside, biases = norm_insides(part.model.graph), _bias_scales(part, found)
    params = []
    for tensor in part.model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in inside:
            continue
        if tensor.data_location != TensorProto.EXTERNAL:  # a number, such as the attention scale
            number = float(numpy_helper.to_array(tensor).item())
            activations.append(_of_value(tensor.name, Encoding.from_range(number, number, 16)))
        elif tensor.name in biases:
            params.append(_per_row(tensor.name, _BIAS_BITS, biases[tensor.name]))
        else:
            params.extend(_of_weight(tensor, part.weights))
    return {"version": VERSION, LISTS[0]: activations, LISTS[1]: params}


def check_encodings(label: str, model: onnx.ModelProto, encodings: Mapping[str, Any]) -> None:
    """Find out, before anything is uploaded, whether encodings and ONNX file fit.

    Raises:
        BackendError: names the first tensor without an encoding, and else the first encoding without a tensor or
            with a second one.
    """
    inside = norm_insides(model.graph)
    wanted = [value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    wanted += [name for node in model.graph.node for name in node.output]
    wanted += [tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    names = [entry["name"] for key in LISTS for entry in encodings[key]]
    given = set(names)
    for name in wanted:
        if name not in inside and name not in given:
            raise BackendError(f"{label}: tensor '{name}' has no encoding; quantize it, or add a pass that does")
    seen: set[str] = set()
    known = set(wanted) - inside
    for name in names:
        if name not in known or name in seen:
            reason = "twice" if name in seen else "but its ONNX file has no such quantized tensor"
            raise BackendError(f"{label}: the encodings name '{name}' {reason}")
        seen.add(name)


def _of_value(name: str, encoding: Encoding) -> dict[str, Any]:
    half = 2 ** (encoding.bits - 1)
    symmetric = encoding.signed or (encoding.bits == _SYMMETRIC_BITS and encoding.zero_point == half)
    offset = -half if encoding.signed else -encoding.zero_point
    return _entry(name, encoding.bits, symmetric, "PER_TENSOR", [encoding.scale], [offset])


def _of_weight(tensor: TensorProto, weights: FloatWeights) -> list[dict[str, Any]]:
    """The encoding of a weight or of some of its rows; none where the bundle holds it in float."""
    name, rows = weights.rows_of(tensor)
    source = weights.sources[name]
    if source.bits == 32:
        return []
    if source.multipliers is not None:
        entry = _per_row(tensor.name, _BLOCK_BITS, source.scale[rows])
        multipliers = source.multipliers[rows].flatten().tolist()
        blocks = {"compressed_bw": source.bits, "per_block_int_scale": multipliers, "block_size": source.block}
        return [{**entry, "enc_type": "LPBQ", **blocks}]
    if source.bits < 16:
        return [_per_row(tensor.name, source.bits, source.scale[rows])]
    offset = [-source.zero_point]
    return [_entry(tensor.name, source.bits, False, "PER_TENSOR", [float(source.scale[0])], offset)]


def _bias_scales(part: FloatPart, values: Mapping[str, Encoding]) -> dict[str, NDArray[np.float32]]:
    """The row scales of each bias: those of the products that it is added to."""
    initializers = {tensor.name: tensor for tensor in part.model.graph.initializer}
    found: dict[str, NDArray[np.float32]] = {}
    for node in part.model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[0] in values:
            name, rows = part.weights.rows_of(initializers[node.input[1]])
            scale = part.weights.sources[name].scale[rows] * np.float32(values[node.input[0]].scale)
            found[node.input[2]] = scale.astype(np.float32)
    return found


def _per_row(name: str, bits: int, scales: NDArray[np.float32]) -> dict[str, Any]:
    return _entry(name, bits, True, "PER_CHANNEL", scales.tolist(), [-(2 ** (bits - 1))] * len(scales))


def _entry(
    name: str, bits: int, symmetric: bool, kind: str, scale: Sequence[float], offset: Sequence[int]
) -> dict[str, Any]:
    return {
        "name": name,
        "bw": bits,
        "dtype": "INT",
        "enc_type": kind,
        "is_sym": symmetric,
        "scale": list(scale),
        "offset": list(offset),
    }
