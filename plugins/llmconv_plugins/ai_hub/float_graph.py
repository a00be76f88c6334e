"""One part of a graph as float ONNX of opset 17, over float weights that lie on the quantization grid."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from torch import fx

from llmconv import BackendError, LoweringError
from llmconv.backends import BuildJob
from llmconv.bundle import BundleStore, Placed
from llmconv.graph import REQUANTIZE, Graph, aten, name_of, shape_of
from llmconv.lowering import Lowering
from llmconv.weights import WeightStore
from llmconv_plugins.lowerings import norm_arguments

OPSET = 17  # AI Hub's own exports use 17 or 18; RMSNormalization, of 23, is unverified there
IR_VERSION = 8  # of opset 17
NORM = ("Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul")  # what the service knows for an RMSNorm

_NO_SCALES = np.empty(0, np.float32)
_BLOCK = 1 << 20  # elements that are dequantized at once: 4 MB


@dataclass
class FloatWeights:
    """Where each weight of a part lies in the float `.data` file: one after the other, in the order of first use.

    Holds no weight: `blocks` reads them from the bundle's packed file as they are written.

    Attributes:
        path: of the file; its name alone counts.
        bundle: gives weights on their grids.
        checkpoint: gives biases, whose integers depend on the input's scale and lie in each ONNX file itself.
        sources: how each weight lies in the bundle, with its scales; biases are float.
    """

    path: Path
    bundle: BundleStore
    checkpoint: WeightStore
    sources: dict[str, Placed] = field(default_factory=dict)
    placed: dict[str, Placed] = field(default_factory=dict)
    size: int = 0

    @property
    def weights(self) -> WeightStore:
        """Itself: shapes and values."""
        return self

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self.place(name).shape

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight as the file has it, or a range of its rows."""
        return (self.bundle if name in self.bundle.index else self.checkpoint).read(name, rows)

    def sha256(self, name: str) -> str | None:
        """None: these bytes are no checkpoint's."""
        return None

    def place(self, name: str) -> Placed:
        """Where the weight lies, as float32."""
        if name not in self.placed:
            if name in self.bundle.index:
                source = self.bundle.place(name)
            else:
                source = Placed(32, 0, 0, _NO_SCALES, 0, self.checkpoint.shape(name))
            row_bytes = 4 * prod(source.shape[1:])
            self.placed[name] = Placed(32, self.size, row_bytes, _NO_SCALES, 0, source.shape)
            self.sources[name] = source
            self.size += 4 * prod(source.shape)
        return self.placed[name]

    def rows_of(self, tensor: onnx.TensorProto) -> tuple[str, slice]:
        """The weight and its rows that an external initializer refers to."""
        fields = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(fields["offset"]), int(fields["length"])
        names = list(self.placed)
        name = names[bisect_right(names, offset, key=lambda n: self.placed[n].offset) - 1]
        placed = self.placed[name]
        start = (offset - placed.offset) // placed.row_bytes
        return name, slice(start, start + length // placed.row_bytes)

    def blocks(self) -> Iterator[memoryview]:
        """The content of the file, some rows at a time."""
        for name, placed in self.placed.items():
            count = placed.shape[0] if placed.shape else 1
            step = max(1, 4 * _BLOCK // placed.row_bytes)
            for start in range(0, count, step):
                rows = slice(start, min(start + step, count)) if placed.shape else None
                yield self.read(name, rows).contiguous().numpy().reshape(-1).data


@dataclass(frozen=True)
class FloatPart:
    """A part's float ONNX.

    Attributes:
        model: refers to its weights in `<label>.data`.
        names: the model's name of each value's tensor -> the value's structural name.
    """

    label: str
    model: onnx.ModelProto
    names: Mapping[str, str]
    weights: FloatWeights


def float_part(job: BuildJob, graph: Graph, part: int) -> FloatPart:
    """Lower one part of a graph without quantization; inputs and outputs keep their names.

    Raises:
        BackendError: an op has no lowering.
    """
    label = graph.label(part)
    weights = FloatWeights(Path(f"{label}.data"), BundleStore(job.folder), job.model.weights)
    table = {**job.lowerings, aten.rms_norm.default: _rms_norm, REQUANTIZE: _requantize}
    lowering = Lowering(graph.parts[part], None, weights, table, opset=OPSET, ir_version=IR_VERSION)
    try:
        model = lowering.run()
    except LoweringError as error:
        raise BackendError(f"{label}: {error}") from error
    return FloatPart(label, model, lowering.tensors(), weights)


def norm_insides(graph: onnx.GraphProto) -> set[str]:
    """The tensors inside decomposed norms, small constants included; an RmsNorm of the device has none of them.

    A norm's input, weight and output are not among them.
    """
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    inside: set[str] = set()
    for node in graph.node:
        chain = [node]
        for op in NORM[1:] if node.op_type == NORM[0] else ():
            following = users.get(chain[-1].output[0], [])
            if len(following) != 1 or following[0].op_type != op:
                break
            chain.append(following[0])
        if len(chain) == len(NORM):
            inside |= {step.output[0] for step in chain[:-1]}
            inside |= {chain[0].input[1], chain[2].input[1]}  # the exponent, epsilon
    return inside


def _rms_norm(low: Lowering, node: fx.Node) -> gs.Tensor:
    """x / sqrt(mean(x ** 2) + epsilon) * weight, with the names of the steps below the norm's own."""
    x, weight, epsilon = norm_arguments(node)
    name, shape = name_of(node), list(shape_of(node))
    given = low.value(x)

    def step(op: str, what: str, inputs: list[gs.Tensor], size: list[int], **attributes: Any) -> gs.Tensor:
        out = gs.Variable(f"{name}.{what}", np.float32, size)
        low.graph.nodes.append(gs.Node(op, out.name, inputs=inputs, outputs=[out], attrs=attributes))
        return out

    def number(what: str, value: float) -> gs.Tensor:
        return gs.Constant(f"{name}.{what}", np.array(value, dtype=np.float32))

    one = [*shape[:-1], 1]
    square = step("Pow", "square", [given, number("two", 2.0)], shape)
    mean = step("ReduceMean", "mean", [square], one, axes=[-1], keepdims=1)
    shifted = step("Add", "shifted", [mean, number("epsilon", epsilon)], one)
    root = step("Sqrt", "root", [shifted], one)
    normal = step("Div", "normal", [given, root], shape)
    return low.emit("Mul", node, [normal, low.weight(weight)])


def _requantize(low: Lowering, node: fx.Node) -> gs.Tensor:
    """An Identity, so that there is a tensor of its own for the narrower encoding.

    The value itself has the 16-bit encoding already. Should the service drop the Identity, the transposes and concats
    of the cache that follow still carry the 8-bit encoding, and there its converter changes the width instead.
    """
    return low.emit("Identity", node, [low.value(node.args[0])])
