"""Heads of an ONNX graph are joined for ONNX Runtime, and no number changes by it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from llmconv import Bundle
from llmconv_plugins.runtimes import joined_heads
from llmconv_plugins.runtimes.joined_heads import with_joined_heads
from llmconv_plugins.runtimes.repeated_roundings import without_repeated_roundings

HEADS = 3
CONSTANTS = {
    "axis 0": np.array([0]),
    "axis 3": np.array([3]),
    "two": np.array(2, np.float32),
    "shape": np.array([1, 2, 4]),
    **{str(i): np.array([i]) for i in range(5)},
    **{f"s{i}": np.array(0.25 * (i + 1), np.float32) for i in range(HEADS)},
    **{f"z{i}": np.array(100 + i, np.uint8) for i in range(HEADS)},
}


def model(head: list[list[NodeProto]], ends: list[NodeProto], outputs: dict[str, list[int]]) -> onnx.ModelProto:
    """Nodes of each head on x, uint8 (3, 1, 2, 4), then those of all."""
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [HEADS, 1, 2, 4])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    constants = [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items()]
    graph = helper.make_graph([n for nodes in head for n in nodes] + ends, "g", [x], made, constants)
    opset = [helper.make_opsetid("", 21)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opset, ir_version=10))


def floats(i: int, start: int | None = None, stop: int | None = None) -> list[NodeProto]:
    """A head's rows of x as floats, on a grid of its own."""
    ends = [str(i if start is None else start), str(i + 1 if stop is None else stop)]
    return [
        helper.make_node("Slice", ["x", *ends, "axis 0"], [f"rows{i}"]),
        helper.make_node("DequantizeLinear", [f"rows{i}", f"s{i}", f"z{i}"], [f"float{i}"]),
    ]


def outputs(made: onnx.ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])
    x = np.random.default_rng(0).integers(0, 255, (HEADS, 1, 2, 4)).astype(np.uint8)
    return list(session.run(None, {"x": x}))


def joined(made: onnx.ModelProto) -> Counter[str]:
    """The ops once heads are joined, which give the same numbers."""
    expected = outputs(made)
    found = with_joined_heads(made)
    assert all(np.array_equal(a, b) for a, b in zip(expected, outputs(found), strict=True))
    return Counter(node.op_type for node in found.graph.node)


def test_each_head_is_rounded_to_its_own_grid() -> None:
    heads = [
        [
            *floats(i),
            helper.make_node("Mul", [f"float{i}", "two"], [f"double{i}"]),
            helper.make_node("QuantizeLinear", [f"double{i}", f"s{i}", f"z{i}"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", f"s{i}", f"z{i}"], [f"y{i}"]),
        ]
        for i in reversed(range(HEADS))
    ]
    found = joined(model(heads, [], {f"y{i}": [1, 1, 2, 4] for i in range(HEADS)}))
    assert found == {"Identity": 1, "DequantizeLinear": 2, "Mul": 1, "QuantizeLinear": 1, "Split": 1}


def test_movement_that_leaves_heads_alone_is_joined() -> None:
    heads = [
        [
            *floats(i),
            helper.make_node("Transpose", [f"float{i}"], [f"turned{i}"], perm=[0, 1, 3, 2]),
            helper.make_node("Slice", [f"float{i}", "0", "2", "axis 3"], [f"left{i}"]),
            helper.make_node("Concat", [f"left{i}", f"float{i}"], [f"wide{i}"], axis=3),
            helper.make_node("Softmax", [f"wide{i}"], [f"soft{i}"], axis=3),
            helper.make_node("MatMul", [f"turned{i}", f"soft{i}"], [f"product{i}"]),
            helper.make_node("Reshape", [f"float{i}", "shape"], [f"flat{i}"]),
        ]
        for i in range(HEADS)
    ]
    ends = [
        helper.make_node("Concat", [f"{name}{i}" for i in range(HEADS)], [name], axis=1) for name in ("product", "flat")
    ]
    found = joined(model(heads, ends, {"product": [1, HEADS, 4, 6], "flat": [1, HEADS * 2, 4]}))
    assert found == {
        **dict.fromkeys(("Identity", "DequantizeLinear", "Transpose", "Slice", "Softmax", "Reshape"), 1),
        "MatMul": HEADS,
        "Concat": 3,
        "Split": 3,
    }


def test_products_of_operands_that_heads_share_stay_one_each() -> None:
    heads = [
        [*floats(i), helper.make_node("Transpose", [f"float{i}"], [f"t{i}"], perm=[0, 1, 3, 2])] for i in range(HEADS)
    ]
    ends = [helper.make_node("MatMul", [f"float{i}", f"t{i // 2}"], [f"p{i}"]) for i in range(HEADS)]
    ends += [helper.make_node("Softmax", [f"p{i}"], [f"y{i}"], axis=-1) for i in range(HEADS)]
    found = joined(model(heads, ends, {f"y{i}": [1, 1, 2, 2] for i in range(HEADS)}))
    assert (found["MatMul"], found["Softmax"], found["Transpose"]) == (HEADS, 1, 1)


OTHERS = {
    "across heads": lambda i: helper.make_node("Softmax", [f"float{i}"], [f"y{i}"], axis=0),
    "the head moved": lambda i: helper.make_node("Transpose", [f"float{i}"], [f"y{i}"], perm=[1, 0, 2, 3]),
    "a constant of its own": lambda i: helper.make_node("Mul", [f"float{i}", f"s{i}"], [f"y{i}"]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_ops_stay_one_each(case: str) -> None:
    made = model(
        [[*floats(i), OTHERS[case](i)] for i in range(HEADS)], [], {f"y{i}": [1, 1, 2, 4] for i in range(HEADS)}
    )
    op = OTHERS[case](0).op_type
    assert joined(made)[op] == HEADS


def test_rows_with_a_gap_stay_apart() -> None:
    made = model([floats(0), floats(1, 2, 3)], [], {f"float{i}": [1, 1, 2, 4] for i in range(2)})
    assert joined(made) == {"Slice": 2, "DequantizeLinear": 2}


def test_large_results_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_heads, "LARGE", HEADS * 8 - 1)
    made = model([floats(i) for i in range(HEADS)], [], {f"float{i}": [1, 1, 2, 4] for i in range(HEADS)})
    assert joined(made)["DequantizeLinear"] == HEADS


def test_a_bundle_has_a_fraction_of_the_nodes(small_bundle: Bundle) -> None:
    file = small_bundle.path(small_bundle.graphs["token"].parts[0].onnx)
    made = without_repeated_roundings(onnx.load(str(file), load_external_data=False))
    before = Counter(node.op_type for node in made.graph.node)
    after = Counter(node.op_type for node in with_joined_heads(made).graph.node)
    assert after["QuantizeLinear"] < 0.7 * before["QuantizeLinear"]
    assert after["MatMul"] <= before["MatMul"]
