"""What a bundle's graphs take and give: the contract between manifest, backends and runtimes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.encodings.value import Encoding

ONNX_FOLDER = "onnx"  # in a bundle


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of one part of a graph, as files and binaries have it.

    Attributes:
        kind, layer, head_axis, token_axis: as in `llmconv.IO`.
        dtype: of the integers that go in and out; float32 where the bundle is not quantized.
        encoding: None for ids and floats.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    layer: int | None
    head_axis: int | None
    token_axis: int | None
    encoding: Encoding | None


@dataclass(frozen=True)
class PartSpec:
    """One part of a graph: its name inside binaries, its ONNX file, its inputs and outputs."""

    label: str
    onnx: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One graph of the bundle."""

    name: str
    ar: int
    context: int
    parts: tuple[PartSpec, ...]


def graph_from_dict(item: dict[str, Any]) -> GraphSpec:
    parts = tuple(
        PartSpec(p["label"], p["onnx"], *(tuple(_tensor(t) for t in p[side]) for side in ("inputs", "outputs")))
        for p in item["parts"]
    )
    return GraphSpec(item["name"], item["ar"], item["context"], parts)


def _tensor(item: dict[str, Any]) -> TensorSpec:
    encoding = item["encoding"] and Encoding(**item["encoding"])
    return TensorSpec(**{**item, "shape": tuple(item["shape"]), "encoding": encoding})


def graph_to_dict(graph: GraphSpec) -> dict[str, Any]:
    """For the manifest."""
    return asdict(graph)


def quantize(value: NDArray[np.generic], spec: TensorSpec) -> NDArray[np.generic]:
    """A host's array as the part takes it."""
    if spec.encoding is None:
        return value.astype(spec.dtype)
    import torch  # noqa: PLC0415  a bundle's specs are read without it

    floats = torch.from_numpy(np.require(value, np.float32, ["C", "W"]))
    return spec.encoding.quantize(floats).numpy().astype(spec.dtype)


def dequantize(value: NDArray[np.generic], spec: TensorSpec) -> NDArray[np.generic]:
    """A part's array as floats."""
    if spec.encoding is None:
        return value
    import torch  # noqa: PLC0415  as above

    return spec.encoding.dequantize(torch.from_numpy(np.require(value, requirements=("C", "W")))).numpy()
