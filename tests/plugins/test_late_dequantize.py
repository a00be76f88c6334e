"""Of an embedding table, ONNX Runtime dequantizes the rows that are looked up; no number changes by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from llmconv import Bundle
from llmconv_plugins.runtimes.late_dequantize import with_rows_dequantized, with_weights_first

DRAW = np.random.default_rng(0)
TABLE = DRAW.integers(0, 1 << 16, (6, 4)).astype(np.uint16)
NODES = (
    helper.make_node("DequantizeLinear", ["table", "s", "z"], ["floats"]),
    helper.make_node("Gather", ["floats", "ids"], ["y"], axis=0),
)


def model(nodes: Sequence[onnx.NodeProto], scale: np.ndarray, outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    zero = np.full(scale.shape, 99, np.uint16)
    numbers = [numpy_helper.from_array(a, n) for n, a in (("table", TABLE), ("s", scale), ("z", zero))]
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT32, [1, 3])
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(
        [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes], "g", [ids], ends, numbers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(made: onnx.ModelProto) -> list[np.ndarray]:
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": np.array([[5, 0, 5]], np.int32)})


def ops(made: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node]


def test_rows_are_looked_up_as_integers() -> None:
    scale = np.array(0.37, np.float32)
    (expected,) = run(model(NODES, scale))
    made = with_rows_dequantized(model(NODES, scale))
    assert ops(made) == ["Gather", "DequantizeLinear"]
    assert made.graph.node[0].input[0] == "table"
    (found,) = run(made)
    assert np.array_equal(expected, found)


@pytest.mark.parametrize(
    ("scale", "further", "outputs"),
    [
        (np.array(0.37, np.float32), [helper.make_node("Neg", ["floats"], ["also"])], ("y", "also")),  # a tied head
        (np.array(0.37, np.float32), [], ("y", "floats")),
        (np.full(4, 0.37, np.float32), [], ("y",)),  # a scale a column
    ],
)
def test_a_table_that_others_take_or_of_several_scales_stays(
    scale: np.ndarray, further: list[onnx.NodeProto], outputs: tuple[str, ...]
) -> None:
    made = model([*NODES, *further], scale, outputs)
    assert ops(with_rows_dequantized(made)) == ["DequantizeLinear", "Gather", *(node.op_type for node in further)]


def test_the_table_of_a_bundle_stays_integers(small_bundle: Bundle) -> None:
    file = small_bundle.path(small_bundle.graphs["token"].parts[0].onnx)
    made = with_rows_dequantized(onnx.load(str(file), load_external_data=False))
    (lookup,) = (node for node in made.graph.node if node.op_type == "Gather")
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    assert kinds[lookup.input[0]] == onnx.TensorProto.UINT16


def test_weights_stand_before_what_is_computed(small_bundle: Bundle) -> None:
    """The order in which ONNX Runtime takes operands; the values themselves: test_repeated_roundings.py."""
    file = small_bundle.path(small_bundle.graphs["prompt"].parts[-1].onnx)
    made = with_weights_first(onnx.load(str(file), load_external_data=False))
    stored = {tensor.name for tensor in made.graph.initializer}
    of_weights = [node.op_type == "DequantizeLinear" and node.input[0] in stored for node in made.graph.node]
    assert 0 < sum(of_weights) < len(of_weights)
    assert of_weights == sorted(of_weights, reverse=True)
    before = onnx.load(str(file), load_external_data=False).graph.node
    assert sorted(n.SerializeToString() for n in before) == sorted(n.SerializeToString() for n in made.graph.node)
