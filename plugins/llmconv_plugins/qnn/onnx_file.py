"""What compiling needs to know of an ONNX file: its inputs and outputs, its data files, and what its nodes make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from llmconv import BackendError

Ports = dict[str, tuple[tuple[int, ...], str]]  # name -> shape, numpy's name of the type


@dataclass(frozen=True)
class OnnxFile:
    """One lowered graph.

    Attributes:
        data: names of its external-data files, in its folder.
        makes: node name -> the first tensor that it makes.
    """

    inputs: Ports
    outputs: Ports
    data: tuple[str, ...]
    makes: dict[str, str]


def inspect(path: Path) -> OnnxFile:
    """Read an ONNX file without its weights.

    Raises:
        BackendError: it is missing or no ONNX file, its shapes are not fixed, or a weight file is missing.
    """
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's errors derive from Exception alone
        raise BackendError(f"{path}: not a readable ONNX file ({error})") from error
    locations = {
        entry.value
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in sorted(locations):
        if Path(name).name != name or not (path.parent / name).is_file():
            raise BackendError(f"{path}: its weight file '{name}' is not beside it")
    return OnnxFile(
        _ports(graph.input, path),
        _ports(graph.output, path),
        tuple(sorted(locations)),
        {node.name: node.output[0] for node in graph.node if node.name and node.output},
    )


def _ports(values: Iterable[Any], path: Path) -> Ports:
    found: Ports = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value for d in tensor.shape.dim)
        if not all(shape):
            raise BackendError(f"{path}: '{value.name}' has no fixed shape; QNN compiles fixed shapes only")
        found[value.name] = (shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)
    return found
