"""The small ONNX file through which onnxruntime loads a context binary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from llmconv_plugins.qnn.context_binary import GraphInfo, TensorInfo


def write_wrapper(graph: GraphInfo, binary: Path, file: Path) -> None:
    """Write an EPContext model for one graph of a binary, with the graph's own inputs and outputs."""
    node = helper.make_node(
        "EPContext",
        [t.name for t in graph.inputs],
        [t.name for t in graph.outputs],
        name=graph.name,  # the provider looks the graph up by this
        domain="com.microsoft",
        embed_mode=0,
        ep_cache_context=file.with_suffix(".bin").name,
        main_context=1,
        partition_name=graph.name,
        source="QNNExecutionProvider",
    )
    body = helper.make_graph([node], graph.name, [_value(t) for t in graph.inputs], [_value(t) for t in graph.outputs])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(body, opset_imports=opsets, ir_version=11), file)
    file.with_suffix(".bin").symlink_to(binary.absolute())


def _value(tensor: TensorInfo) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, dtype, tensor.shape)
