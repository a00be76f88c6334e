"""Lower an fx part to ONNX: one function an op, encodings as QuantizeLinear and DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues
from torch import fx

from llmconv.bundle.part_file import Placed
from llmconv.encodings.value import Encoding, Encodings
from llmconv.errors import LoweringError
from llmconv.graph.model import MADE_BY, inputs_of, is_weight, name_of, outputs_of, shape_of, value_of
from llmconv.lowering.export import Node, onnx_model
from llmconv.lowering.missing import REMEDY, without_lowering
from llmconv.naming import nearest
from llmconv.plugins.frame import given, plugin_code
from llmconv.weights.store import WeightStore

OPSET = 23  # the first with RMSNormalization
IR_VERSION = 11  # of opset 23

_ONNX_TYPES = {4: TensorProto.INT4, 8: TensorProto.INT8, 16: TensorProto.UINT16, 32: TensorProto.FLOAT}

LoweringFunction = Callable[["Lowering", fx.Node], gs.Tensor]
LoweringTable = Mapping[Any, LoweringFunction]


@dataclass(frozen=True)
class WeightView:
    """Rows of a weight in a shape of their own, as a chain of slices and reshapes leaves them."""

    root: str
    start: int
    stop: int
    shape: tuple[int, ...]


class WeightPlaces(Protocol):
    """Where a part's weights lie in the file that its ONNX refers to, e.g. `PlacedWeights`."""

    @property
    def path(self) -> Path:
        """The file; ONNX takes its name alone."""
        ...

    @property
    def weights(self) -> WeightStore:
        """The weights themselves."""
        ...

    def place(self, name: str) -> Placed:
        """Where a weight lies."""
        ...


class Lowering:
    """One part on its way to ONNX. Lowering functions call `value`, `weight`, `constant` and `emit`.

    Args:
        part: the graph, every op of which is in `table`.
        encodings: of values and weights; none for a float model.
        weights: the part's weight file, open.
        table: fx op -> function that emits it and returns its float value.
        opset, ir_version: of the ONNX file; those of a table's ops.
    """

    def __init__(
        self,
        part: fx.GraphModule,
        encodings: Encodings | None,
        weights: WeightPlaces,
        table: LoweringTable,
        *,
        opset: int = OPSET,
        ir_version: int = IR_VERSION,
    ) -> None:
        self.part, self.weights, self.table = part, weights, table
        self.encodings = encodings or Encodings()
        self.graph = gs.Graph(opset=opset, ir_version=ir_version)
        self._values: dict[fx.Node, gs.Tensor] = {}
        self._quantized: dict[fx.Node, gs.Tensor] = {}
        self._weights: dict[str, gs.Tensor] = {}
        self._constants: dict[Any, gs.Constant] = {}
        self._outputs = {node: name for name, node in outputs_of(part).items()}
        self._io_names = {*inputs_of(part), *outputs_of(part)}
        if len(self._outputs) != len(outputs_of(part)):
            raise LoweringError("one value leaves a part under two names")

    def run(self) -> onnx.ModelProto:
        """Emit the whole part."""
        for node in self.part.graph.nodes:
            if node.op == "placeholder":
                self._input(node)
            elif node.op == "call_function" and not is_weight(node):
                self._settle(node, self._lower(node))
        place = {name: i for i, name in enumerate(outputs_of(self.part))}
        self.graph.outputs = sorted(self.graph.outputs, key=lambda t: place[t.name])
        return onnx_model(self.graph)

    def tensors(self) -> dict[str, str]:
        """After `run`, of a float model: the ONNX name of each value's tensor -> the value's structural name."""
        return {tensor.name: name_of(node) for node, tensor in self._values.items()}

    def _lower(self, node: fx.Node) -> gs.Tensor:
        if node.target not in self.table:
            raise LoweringError(f"{without_lowering(node)}; {REMEDY}")
        function, doing = self.table[node.target], f"lowering of {node.target} at '{name_of(node)}'"
        try:
            with plugin_code(function, doing):
                made = function(self, node)
        except LoweringError as error:
            named, made_by = name_of(node) in str(error), node.meta.get(MADE_BY)
            if named and (made_by is None or f"pass '{made_by}'" in str(error)):
                raise
            if named:
                raise LoweringError(f"{error}; pass '{made_by}' made the node") from error
            maker = f", which pass '{made_by}' made" if made_by is not None else ""
            raise LoweringError(f"'{name_of(node)}'{maker}: {error}") from error
        return given(function, doing, made, gs.Tensor)

    def value(self, node: Any) -> gs.Tensor:
        """The float value of an argument: a node's, a weight's, or a number's."""
        if not isinstance(node, fx.Node):
            return self.constant(float(node))
        if node in self._values:
            return self._values[node]
        if is_weight(node):
            return self.weight(node)
        # quantized; a value that nobody reads gets no DequantizeLinear
        found = self._values[node] = self._dequantize(self._quantized[node], *self._known(node))
        return found

    def emit(
        self, op: str, node: fx.Node, inputs: list[gs.Tensor], *, domain: str = "", **attributes: Any
    ) -> gs.Tensor:
        """One ONNX node that computes the float value of `node`.

        Args:
            domain: of an op that is not the standard's, e.g. `com.microsoft`; its version 1 is meant.

        Raises:
            LoweringError: the standard has no such op, or the op no such attribute.
        """
        if not domain:
            _check_standard(op, attributes, name_of(node), self.graph.opset)
        name = name_of(node)
        out = gs.Variable(f"{name}.f" if name in self._io_names else name, np.float32, list(shape_of(node)))
        self.graph.nodes.append(Node(op, name, inputs, [out], attributes, domain or None))
        return out

    def integers(self, values: list[int]) -> gs.Constant:
        """A small int64 initializer: axes, starts, shapes."""
        key = ("integers", *values)
        if key not in self._constants:
            name = "i64_" + "_".join(str(v) for v in values)
            self._constants[key] = gs.Constant(name, np.array(values, dtype=np.int64))
        return self._constants[key]

    def constant(self, value: float) -> gs.Tensor:
        """A number; quantized exactly, in a model that has encodings."""
        if value in self._constants:
            return self._constants[value]
        if not self.encodings.values:
            self._constants[value] = gs.Constant(f"c_{value!r}", np.array([value], dtype=np.float32))
        else:
            encoding = Encoding.from_range(value, value, 16)
            ints = np.array([65535 if value > 0 else 0], dtype=np.uint16)
            stored = gs.Constant(f"c_{value!r}", ints)
            self._constants[value] = self._dequantize(stored, encoding, f"c_{value!r}", [1])
        return self._constants[value]

    def encoding_of(self, node: fx.Node) -> Encoding | None:
        """The encoding of a value."""
        return self.encodings.values.get(name_of(node))

    def weight_view(self, node: fx.Node) -> WeightView:
        """What a chain of slices and reshapes over a weight refers to.

        Raises:
            LoweringError: the chain does more than cut whole rows and add axes of length 1.
        """
        start, stop, chain = 0, None, node
        while chain.op != "get_attr":
            if chain.target.name() == "aten::slice.Tensor":  # type: ignore[union-attr]
                given: list[Any] = [*chain.args, *(0, None, None, 1)[len(chain.args) - 1 :]]
                source, dim, low, high, step = given
                shape = shape_of(source)
                if dim % len(shape) != 0 or step != 1 or stop is not None:
                    raise LoweringError(f"weight '{name_of(node)}' is cut in a way that has no lowering")
                start, stop, _ = slice(low, high).indices(shape[0])
            elif chain.target.name() != "aten::unsqueeze":  # type: ignore[union-attr]
                raise LoweringError(f"weight '{name_of(node)}' is moved by {chain.target}, which has no lowering")
            chain = chain.all_input_nodes[0]
        rows = shape_of(chain)[0]
        return WeightView(name_of(chain), start, rows if stop is None else stop, shape_of(node))

    def weight(self, node: fx.Node) -> gs.Tensor:
        """The float value of a weight: an external initializer and its DequantizeLinear."""
        view = self.weight_view(node)
        name = (
            view.root
            if view.stop - view.start == self.weights.weights.shape(view.root)[0]
            else (f"{view.root}[{view.start}:{view.stop}]")
        )
        if name not in self._weights:
            self._weights[name] = self._place(name, view)
        if tuple(self._weights[name].shape) != view.shape:
            raise LoweringError(f"weight '{name}' is used in two shapes, which has no lowering")
        return self._weights[name]

    def weight_scale(self, node: fx.Node) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The row scales of a quantized weight, (rows,) float32."""
        view = self.weight_view(node)
        return self.weights.place(view.root).scale[view.start : view.stop]

    def _place(self, name: str, view: WeightView) -> gs.Tensor:
        placed = self.weights.place(view.root)
        stored = gs.Constant(name, LazyValues(_external(placed, view, self.weights.path)))
        if placed.bits == 32:
            return stored
        out = gs.Variable(f"{name}.dq", np.float32, list(view.shape))
        attributes: dict[str, int] = {}
        if placed.block:
            attributes = {"axis": 1, "block_size": placed.block}
            scale = gs.Constant(f"{name}.scale", LazyValues(_external_scales(placed, view, self.weights.path)))
            zero_point = _zeros(f"{name}.zero_point", placed.bits, scale.shape)
        elif placed.bits < 16:
            attributes = {"axis": 0}
            scale = gs.Constant(f"{name}.scale", placed.scale[view.start : view.stop])
            zero_point = _zeros(f"{name}.zero_point", placed.bits, scale.shape)
        else:
            scale = gs.Constant(f"{name}.scale", placed.scale.reshape(()))
            zero_point = gs.Constant(f"{name}.zero_point", np.array(placed.zero_point, dtype=np.uint16))
        self.graph.nodes.append(Node("DequantizeLinear", f"{name}.dq", [stored, scale, zero_point], [out], attributes))
        return out

    def _known(self, node: fx.Node) -> tuple[Encoding, str, list[int]]:
        return self.encodings.values[name_of(node)], name_of(node), list(shape_of(node))

    def _input(self, node: fx.Node) -> None:
        name, encoding = str(node.target), self.encoding_of(node)
        dtype = np.float32 if value_of(node).is_floating_point() else np.int32
        given = gs.Variable(name, np.dtype(encoding.dtype) if encoding else dtype, list(shape_of(node)))
        self.graph.inputs.append(given)
        (self._values if encoding is None else self._quantized)[node] = given

    def _settle(self, node: fx.Node, value: gs.Tensor) -> None:
        """Quantize a value where it has an encoding, and let it leave where it is an output."""
        io_name = self._outputs.get(node)
        if self.encoding_of(node) is None:
            self._values[node] = value
            value.name = io_name or value.name
        else:
            encoding, name, shape = self._known(node)
            quantized = gs.Variable(io_name or f"{name}.q", np.dtype(encoding.dtype), shape)
            inputs = [value, *self._parameters(encoding)]
            self.graph.nodes.append(Node("QuantizeLinear", f"{name}.q", inputs, [quantized]))
            self._quantized[node] = value = quantized
        if io_name is not None:
            self.graph.outputs.append(value)

    def _dequantize(self, quantized: gs.Tensor, encoding: Encoding, name: str, shape: list[int]) -> gs.Tensor:
        scale, zero_point = self._parameters(encoding)
        out = gs.Variable(f"{name}.dq", np.float32, shape)
        self.graph.nodes.append(Node("DequantizeLinear", f"{name}.dq", [quantized, scale, zero_point], [out]))
        return out

    def _parameters(self, encoding: Encoding) -> tuple[gs.Constant, gs.Constant]:
        scale, zero_point, dtype = encoding.scale, encoding.zero_point, encoding.dtype
        return self._scalar("s", scale, "float32"), self._scalar(f"z_{dtype}", zero_point, dtype)

    def _scalar(self, kind: str, value: float, dtype: str) -> gs.Constant:
        if (found := self._constants.get((kind, value))) is None:
            found = self._constants[kind, value] = gs.Constant(f"{kind}_{value!r}", np.array(value, dtype=dtype))
        return found


def _check_standard(op: str, attributes: Mapping[str, Any], node: str, opset: int) -> None:
    known = _attributes(op, opset)
    if known is None:
        raise LoweringError(f"'{node}' is lowered to {op}, which ONNX does not have; give its domain, or another op")
    if unknown := sorted(attributes.keys() - known):
        raise LoweringError(f"'{node}' is lowered to {op} with {unknown[0]}{nearest(unknown[0], sorted(known))}")


@cache
def _attributes(op: str, opset: int) -> frozenset[str] | None:
    """Those that the standard's op may have; None where there is no such op."""
    if not onnx.defs.has(op):
        return None
    return frozenset(onnx.defs.get_schema(op, max_inclusive_version=opset).attributes)


def _zeros(name: str, bits: int, shape: Sequence[int]) -> gs.Constant:
    """Zero points; without them int4 is stored as 8 bit."""
    zeros = TensorProto(data_type=_ONNX_TYPES[bits], dims=shape)
    zeros.raw_data = b"\0" * -(-prod(shape) * bits // 8)
    return gs.Constant(name, LazyValues(zeros))


def _external(placed: Placed, view: WeightView, file: Path) -> TensorProto:
    """Some rows of a weight's integers, where they lie."""
    return _lying(_ONNX_TYPES[placed.bits], view.shape, file, placed.offset, placed.row_bytes, view)


def _external_scales(placed: Placed, view: WeightView, file: Path) -> TensorProto:
    """The same rows' block scales."""
    assert placed.multipliers is not None
    blocks = placed.multipliers.shape[1]
    shape = (view.shape[0], blocks, *view.shape[2:])
    return _lying(TensorProto.FLOAT, shape, file, placed.block_scales, 4 * blocks, view)


def _lying(kind: int, shape: Sequence[int], file: Path, offset: int, row_bytes: int, view: WeightView) -> TensorProto:
    tensor = TensorProto(data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    length = row_bytes * (view.stop - view.start)
    fields = {"location": file.name, "offset": offset + row_bytes * view.start, "length": length}
    for key, value in fields.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
