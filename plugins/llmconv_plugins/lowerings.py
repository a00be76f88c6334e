"""How each ATen op that passes leave becomes ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import fx

from llmconv import LoweringError, hookimpl
from llmconv.graph import REQUANTIZE, RESHAPE, aten, name_of, shape_of
from llmconv.lowering import Lowering, LoweringTable

_SAME = {
    aten.add.Tensor: "Add",
    aten.sub.Tensor: "Sub",
    aten.mul.Tensor: "Mul",
    aten.div.Tensor: "Div",
    aten.matmul.default: "MatMul",
    aten.sigmoid.default: "Sigmoid",
    aten.neg.default: "Neg",
    aten.relu.default: "Relu",
    aten.tanh.default: "Tanh",
}


def _same(low: Lowering, node: fx.Node) -> gs.Tensor:
    if node.kwargs:
        raise LoweringError(f"'{name_of(node)}': {node.target} with {', '.join(node.kwargs)} has no lowering")
    return low.emit(_SAME[node.target], node, [low.value(x) for x in node.args])  # type: ignore[index]


def _reshape(low: Lowering, node: fx.Node) -> gs.Tensor:
    return low.emit("Reshape", node, [low.value(node.args[0]), low.integers(list(shape_of(node)))])


def _permute(low: Lowering, node: fx.Node) -> gs.Tensor:
    return low.emit("Transpose", node, [low.value(node.args[0])], perm=[int(d) for d in node.args[1]])  # type: ignore[arg-type, union-attr]


def _transpose(low: Lowering, node: fx.Node) -> gs.Tensor:
    order = list(range(len(shape_of(node))))
    a, b = (int(d) % len(order) for d in node.args[1:3])  # type: ignore[arg-type]
    order[a], order[b] = order[b], order[a]
    return low.emit("Transpose", node, [low.value(node.args[0])], perm=order)


def _slice(low: Lowering, node: fx.Node) -> gs.Tensor:
    given: list[Any] = [*node.args, *(0, None, None, 1)[len(node.args) - 1 :]]
    source, dim, start, stop, step = given
    axis = dim % len(shape_of(node))
    low_end, high_end, step = slice(start, stop, step).indices(shape_of(source)[axis])
    bounds = [low.integers([low_end]), low.integers([high_end]), low.integers([axis]), low.integers([step])]
    return low.emit("Slice", node, [low.value(source), *bounds])


def _cat(low: Lowering, node: fx.Node) -> gs.Tensor:
    axis = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
    return low.emit("Concat", node, [low.value(x) for x in node.args[0]], axis=axis % len(shape_of(node)))  # type: ignore[union-attr]


def _softmax(low: Lowering, node: fx.Node) -> gs.Tensor:
    return low.emit("Softmax", node, [low.value(node.args[0])], axis=int(node.args[1]) % len(shape_of(node)))  # type: ignore[arg-type]


def _embedding(low: Lowering, node: fx.Node) -> gs.Tensor:
    return low.emit("Gather", node, [low.weight(_node(node.args[0])), low.value(node.args[1])], axis=0)


def norm_arguments(node: fx.Node) -> tuple[fx.Node, fx.Node, float]:
    """Input, weight and epsilon of an rms_norm.

    Raises:
        LoweringError: it is over more than the last axis, or has no weight.
    """
    given: tuple[Any, ...] = (*node.args, None, None)
    x, normalized, weight, epsilon = given[:4]
    if list(normalized) != list(shape_of(_node(x))[-1:]):
        raise LoweringError(f"'{name_of(node)}': only a norm over the last axis has a lowering")
    return x, _node(weight), torch.finfo(torch.float32).eps if epsilon is None else float(epsilon)


def _rms_norm(low: Lowering, node: fx.Node) -> gs.Tensor:
    x, weight, epsilon = norm_arguments(node)
    return low.emit("RMSNormalization", node, [low.value(x), low.weight(weight)], axis=-1, epsilon=epsilon)


def _mean(low: Lowering, node: fx.Node) -> gs.Tensor:
    x, dims, keep = (*node.args, False)[:3]
    axes = [int(d) % len(shape_of(_node(x))) for d in dims]  # type: ignore[union-attr, arg-type]
    return low.emit("ReduceMean", node, [low.value(x), low.integers(axes)], keepdims=int(bool(keep)))


def _gelu(low: Lowering, node: fx.Node) -> gs.Tensor:
    return low.emit("Gelu", node, [low.value(node.args[0])], approximate=node.kwargs.get("approximate", "none"))


def _conv2d(low: Lowering, node: fx.Node) -> gs.Tensor:
    given: list[Any] = [*node.args, *(None, [1, 1], [0, 0], [1, 1], 1)[len(node.args) - 2 :]]
    x, weight, bias, stride, padding, _, groups = given
    kernel = list(shape_of(_node(weight))[2:])
    if kernel != [1, 1] or stride != [1, 1] or padding != [0, 0] or groups != 1:
        raise LoweringError(f"'{name_of(node)}': only 1×1 convolutions of stride 1 have a lowering")
    inputs = [low.value(x), low.weight(_node(weight))]
    if bias is not None:
        inputs.append(_bias(low, _node(x), _node(weight), _node(bias)))
    return low.emit("Conv", node, inputs, kernel_shape=[1, 1])


def _bias(low: Lowering, x: fx.Node, weight: fx.Node, bias: fx.Node) -> gs.Tensor:
    """A bias at the scale of the products that it is added to: input scale times weight scale, int32."""
    encoding = low.encoding_of(x)
    if encoding is None:
        return low.weight(bias)
    view, name = low.weight_view(bias), name_of(bias)
    low.weights.place(view.root)  # as floats, for readers of the bundle other than ONNX
    values = low.weights.weights.read(view.root, slice(view.start, view.stop)).numpy()
    scale = (low.weight_scale(weight) * np.float32(encoding.scale)).astype(np.float32)
    limit = np.iinfo(np.int32)
    ints = np.clip(np.round(values / scale), limit.min, limit.max).astype(np.int32)
    out = gs.Variable(f"{name}.dq", np.float32, list(view.shape))
    low.graph.nodes.append(
        gs.Node(
            "DequantizeLinear",
            f"{name}.dq",
            attrs={"axis": 0},
            inputs=[gs.Constant(name, ints), gs.Constant(f"{name}.scale", scale)],
            outputs=[out],
        )
    )
    return out


def _requantize(low: Lowering, node: fx.Node) -> gs.Tensor:
    """The value itself: its DequantizeLinear and the QuantizeLinear that follows are one QNN Convert."""
    return low.value(node.args[0])


def _node(value: Any) -> fx.Node:
    if not isinstance(value, fx.Node):
        raise LoweringError(
            f"{value!r} stands where a weight belongs; leave one there, of ones where it is to do nothing"
        )
    return value


TABLE: LoweringTable = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(RESHAPE, _reshape),
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.slice.Tensor: _slice,
    aten.cat.default: _cat,
    aten.softmax.int: _softmax,
    aten.embedding.default: _embedding,
    aten.rms_norm.default: _rms_norm,
    aten.mean.dim: _mean,
    aten.gelu.default: _gelu,
    aten.conv2d.default: _conv2d,
    REQUANTIZE: _requantize,
}


@hookimpl
def register_lowerings() -> LoweringTable:
    """The table of built-in lowerings."""
    return TABLE
