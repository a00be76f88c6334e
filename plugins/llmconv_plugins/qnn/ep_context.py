"""An ONNX file of one EPContext node: how ONNX Runtime loads one graph of a context binary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

Port = tuple[str, str, Sequence[int]]  # name, numpy's name of the type, shape


def ep_context(name: str, inputs: Sequence[Port], outputs: Sequence[Port], binary: str) -> onnx.ModelProto:
    """A model with the inputs and outputs of the binary's graph `name`.

    Args:
        binary: the file's name; ONNX Runtime wants it beside the ONNX file.
    """
    node = helper.make_node(
        "EPContext",
        [port[0] for port in inputs],
        [port[0] for port in outputs],
        name=name,
        domain="com.microsoft",
        embed_mode=0,
        ep_cache_context=binary,
        main_context=1,
        partition_name=name,
        source="QNNExecutionProvider",
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "wrapper", [_value(p) for p in inputs], [_value(p) for p in outputs])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _value(port: Port) -> Any:
    name, dtype, shape = port
    return helper.make_tensor_value_info(name, onnx.TensorProto.DataType.Value(dtype.upper()), list(shape))
