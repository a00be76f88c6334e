"""The smallest graph that the compiler and the simulator can be tried with: x + x, of 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

COUNT, SCALE, OPSET, IR = 64, 0.001, 21, 10


def doubled(file: Path) -> None:
    """Write it as ONNX."""
    numbers = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [SCALE]),
        helper.make_tensor("twice", TensorProto.FLOAT, [], [2 * SCALE]),
        helper.make_tensor("zero", TensorProto.UINT16, [], [0]),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["a"]),
        helper.make_node("Add", ["a", "a"], ["b"]),
        helper.make_node("QuantizeLinear", ["b", "twice", "zero"], ["y"]),
    ]
    taken, given_back = (helper.make_tensor_value_info(name, TensorProto.UINT16, [1, COUNT]) for name in "xy")
    graph = helper.make_graph(nodes, "doubled", [taken], [given_back], numbers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR), file)


def given() -> NDArray[np.uint16]:
    """What it is run on."""
    return (np.arange(COUNT, dtype=np.uint16) * 1000)[None]


def expected() -> NDArray[np.uint16]:
    """What it gives: the same integers, of a scale twice as large."""
    return given()
