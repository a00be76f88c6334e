"""Roundings that repeat another are left out for ONNX Runtime, and no number changes by it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from llmconv import Bundle
from llmconv_plugins.runtimes.onnxruntime import open_session, run_session
from llmconv_plugins.runtimes.repeated_roundings import without_repeated_roundings


def run(session: Any, seed: int) -> dict[str, Any]:
    """On random integers."""
    draw = np.random.default_rng(seed)
    types = {"tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16}
    given = {}
    for put in session.get_inputs():
        if put.name == "input_ids":
            given[put.name] = draw.integers(0, 2048, put.shape, dtype=np.int32)
        else:
            kind = types[put.type]
            given[put.name] = draw.integers(0, np.iinfo(kind).max, put.shape).astype(kind)
    return run_session(session, given)


def op_by_op(file: str) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(file, options, ["CPUExecutionProvider"])


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize("graph", ["prompt", "token"])
def test_every_output_is_the_same_bit_by_bit(small_bundle: Bundle, graph: str, floats: bool) -> None:
    for part in small_bundle.graphs[graph].parts:
        file = small_bundle.path(part.onnx)
        exact, fast = op_by_op(str(file)), open_session(file, floats=floats)
        for seed in range(3):
            expected, found = run(exact, seed), run(fast, seed)
            assert expected.keys() == found.keys()
            assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_those_behind_movement_are_gone(small_bundle: Bundle) -> None:
    file = small_bundle.path(small_bundle.graphs["token"].parts[0].onnx)
    before = onnx.load(str(file), load_external_data=False)
    counts = Counter(node.op_type for node in before.graph.node)
    after = Counter(node.op_type for node in without_repeated_roundings(before).graph.node)
    assert after["QuantizeLinear"] < 0.8 * counts["QuantizeLinear"]
    assert {op: n for op, n in counts.items() if "Linear" not in op} == {
        op: n for op, n in after.items() if "Linear" not in op
    }


def chain(second: tuple[str, str]) -> onnx.ModelProto:
    """Integers, dequantized, transposed, rounded by scale and zero point `second`, and dequantized again."""
    node = onnx.helper.make_node
    nodes = [
        node("DequantizeLinear", ["x", "s", "z"], ["a"]),
        node("Transpose", ["a"], ["b"]),
        node("QuantizeLinear", ["b", *second], ["c"]),
        node("DequantizeLinear", ["c", *second], ["d"]),
        node("Neg", ["d"], ["y"]),
    ]
    kinds = {"x": onnx.TensorProto.UINT8, "y": onnx.TensorProto.FLOAT}
    x, y = (onnx.helper.make_tensor_value_info(name, kind, [2, 2]) for name, kind in kinds.items())
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y]))


@pytest.mark.parametrize(("second", "ops"), [(("s", "z"), 3), (("s", "other"), 5), (("t", "z"), 5)])
def test_a_rounding_to_another_grid_stays(second: tuple[str, str], ops: int) -> None:
    assert len(without_repeated_roundings(chain(second)).graph.node) == ops
