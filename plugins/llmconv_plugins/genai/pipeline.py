"""The two CPU stages around a graph's parts: GenAI's tensors to the graph's inputs, and its outputs to GenAI's.

GenAI counts tokens and keeps one cache buffer (1, G, context, D) a layer; the graph wants mask, cos and sin, gives new
keys and values alone, and integers throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from numpy.typing import NDArray

from llmconv import PassError
from llmconv.bundle import rope_tables
from llmconv.decoding import MASKED
from llmconv.encodings import Encoding
from llmconv.graph import IO, Graph, Model, inputs_of, io_of, name_of, outputs_of, shape_of

TOKENS, PAST, TOTAL, LOGITS = "tokens", "past_seq_len", "total_seq_len", "float_logits"
PRESENT = "present.{}.{}"
OPSET, IR_VERSION = 21, 10  # the first with QuantizeLinear and DequantizeLinear of 16 bits


class _Builder:
    """An ONNX graph of integer arithmetic, op by op."""

    def __init__(self, inputs: Mapping[str, tuple[str, list[Any]]]) -> None:
        self.graph = gs.Graph(opset=OPSET, ir_version=IR_VERSION)
        self.inputs = {name: gs.Variable(name, np.dtype(dtype), shape) for name, (dtype, shape) in inputs.items()}
        self.graph.inputs = list(self.inputs.values())

    def emit(self, op: str, *inputs: gs.Tensor | NDArray[Any], **attributes: Any) -> gs.Variable:
        """One node; arrays become initializers."""
        number = len(self.graph.nodes)
        given = [
            gs.Constant(f"c{number}_{i}", np.array(x)) if isinstance(x, np.ndarray) else x for i, x in enumerate(inputs)
        ]
        out = gs.Variable(f"v{number}")
        self.graph.nodes.append(gs.Node(op, f"n{number}_{op}", inputs=given, outputs=[out], attrs=attributes))
        return out

    def give(self, name: str, value: gs.Variable, dtype: str, shape: list[Any]) -> None:
        """Let a value leave."""
        value.name, value.dtype, value.shape = name, np.dtype(dtype), shape
        self.graph.outputs.append(value)

    def start(self) -> gs.Variable:
        """The position of the first token, int64 [1]: GenAI counts up to the last token of a run, padding included."""
        counted = self.emit("Reshape", self.inputs[PAST], _ints(1))
        read = self.emit("Sub", self.emit("Shape", self.inputs[TOKENS], start=1), _ints(1))
        return self.emit("Sub", self.emit("Cast", counted, to=onnx.TensorProto.INT64), read)

    def model(self) -> onnx.ModelProto:
        """The finished file."""
        made: onnx.ModelProto = gs.export_onnx(self.graph, do_type_check=False)
        onnx.checker.check_model(made)
        return made


def before(graph: Graph, model: Model, vocabulary: int) -> onnx.ModelProto:
    """tokens, past_seq_len, total_seq_len -> the ids, mask, cos and sin that the parts take.

    Fewer tokens than the graph reads are padded on the right; ids from `vocabulary` on, which GenAI pads with, become
    0. (total_seq_len is taken because GenAI gives past_seq_len only together with it.)
    """
    if not graph.rope:
        raise PassError(f"graph '{graph.name}' has no RoPE table")
    b = _Builder({TOKENS: ("int32", [1, "read"]), PAST: ("int32", [1, 1]), TOTAL: ("int32", [1])})
    nodes, kinds = _ports(graph, "in")
    padded = b.emit("Concat", b.inputs[TOKENS], np.zeros((1, graph.ar), np.int32), axis=1)
    ids = b.emit("Slice", padded, _ints(0), _ints(graph.ar), _ints(1))
    known = b.emit("Less", ids, np.array(vocabulary, np.int32))
    b.give(kinds["input_ids"], b.emit("Where", known, ids, np.zeros((1, graph.ar), np.int32)), "int32", [1, graph.ar])
    start = b.start()
    last = np.array([graph.context - 1], np.int64)
    positions = b.emit("Min", b.emit("Add", start, np.arange(graph.ar, dtype=np.int64)), last)
    for kind, table in rope_tables(model).items():
        rows = _integers(table, model, nodes[kinds[kind]])
        shape = shape_of(nodes[kinds[kind]])
        value = b.emit("Reshape", b.emit("Gather", rows, positions, axis=0), _ints(*shape))
        b.give(kinds[kind], value, str(rows.dtype), list(shape))
    mask = nodes[kinds["attention_mask"]]
    fills = _integers(torch.tensor([0.0, MASKED]), model, mask)
    value = b.emit("Where", _seen(b, graph, start), *np.split(fills.astype(np.float32), 2))
    stored = onnx.helper.np_dtype_to_tensor_dtype(fills.dtype)
    b.give(kinds["attention_mask"], b.emit("Cast", value, to=stored), str(fills.dtype), list(shape_of(mask)))
    return b.model()


def _seen(b: _Builder, graph: Graph, start: gs.Variable) -> gs.Variable:
    """Which positions each token sees, bool (1, 1, ar, context): the past up to `start`, then the new ones causally."""
    columns, past = np.arange(graph.context), graph.context - graph.ar
    new = columns[None] - past
    causal = (new >= 0) & (new <= np.arange(graph.ar)[:, None])  # (ar, context)
    filled = b.emit("Less", np.where(columns < past, columns, graph.context).astype(np.int64), start)
    return b.emit("Or", filled, causal[None, None])


def after(graph: Graph, model: Model) -> onnx.ModelProto:
    """New keys and values into the buffers, at their positions, and logits as floats."""
    nodes, kinds = _ports(graph, "out")
    logits = nodes[kinds["logits"]]
    cache = {n: io for part in graph.parts for n, io in io_of(part)[1].items() if io.layer is not None}
    given: dict[str, tuple[str, list[Any]]] = {TOKENS: ("int32", [1, "read"]), PAST: ("int32", [1, 1])}
    for name, io in cache.items():
        _, groups, _, head_dim = shape_of(nodes[name])
        dtype = _dtype(model, nodes[name])
        given[name] = (dtype, list(shape_of(nodes[name])))
        given[_buffer(io)] = (dtype, [1, groups, graph.context, head_dim])
    given[kinds["logits"]] = (_dtype(model, logits), list(shape_of(logits)))
    b = _Builder(given)
    start = b.start()
    places: dict[int, gs.Variable] = {}
    for name, io in cache.items():
        groups = shape_of(nodes[name])[1]
        if groups not in places:
            places[groups] = b.emit("Add", _places(groups, graph.ar), b.emit("Mul", start, _ints(0, 0, 1)))
        value = b.emit("ScatterND", b.inputs[_buffer(io)], places[groups], b.inputs[name])
        b.give(PRESENT.format(io.layer, _what(io)), value, *given[_buffer(io)])
    rows = b.emit("Slice", b.inputs[kinds["logits"]], _ints(0), b.emit("Shape", b.inputs[TOKENS], start=1), _ints(1))
    encoding = _encoding(model, logits)
    if encoding is None:
        value = b.emit("Identity", rows)
    else:
        zero = np.array(encoding.zero_point, encoding.dtype)
        value = b.emit("DequantizeLinear", rows, np.array(encoding.scale, np.float32), zero)
    b.give(LOGITS, value, "float32", [1, "read", shape_of(logits)[-1]])
    return b.model()


def _ports(graph: Graph, side: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Nodes of all parts' inputs or outputs by name, and the names by kind, cache apart."""
    nodes: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for part in graph.parts:
        nodes |= inputs_of(part) if side == "in" else outputs_of(part)
        for name, io in io_of(part)[0 if side == "in" else 1].items():
            kinds[io.kind] = name
    return nodes, kinds


def _encoding(model: Model, node: Any) -> Encoding | None:
    return model.encodings.values[name_of(node)] if model.encodings is not None else None


def _dtype(model: Model, node: Any) -> str:
    encoding = _encoding(model, node)
    return "float32" if encoding is None else encoding.dtype


def _integers(values: torch.Tensor, model: Model, node: Any) -> NDArray[Any]:
    """Floats as the graph takes them."""
    encoding = _encoding(model, node)
    if encoding is None:
        return values.numpy()
    return encoding.quantize(values).numpy().astype(encoding.dtype)


def _places(groups: int, ar: int) -> NDArray[np.int64]:
    """(1, G, ar, 3): batch, group and position of each new row, counted from the first."""
    return np.stack(np.meshgrid([0], np.arange(groups), np.arange(ar), indexing="ij"), axis=-1).astype(np.int64)


def _what(io: IO) -> str:
    return io.kind.removeprefix("new_")


def _buffer(io: IO) -> str:
    return f"past_key_values.{io.layer}.{_what(io)}"


def _ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)
