"""ONNX that is written without onnx-graphsurgeon's exporter is what that gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from llmconv import Bundle
from llmconv.lowering.export import Node, onnx_model
from llmconv.lowering.lower_part import exported


def _of_graphsurgeon(graph: gs.Graph) -> gs.Graph:
    """The same with nodes that their tensors know of."""
    graph.nodes = [
        gs.Node(n.op, n.name, dict(n.attrs), list(n.inputs), list(n.outputs), n.domain) if isinstance(n, Node) else n
        for n in graph.nodes
    ]
    return graph


def _graph(*, domain: str | None = None) -> gs.Graph:
    graph = gs.Graph(opset=23, ir_version=11)
    x, spare = gs.Variable("x", np.float32, [1, 4]), gs.Variable("spare", np.int32, [1])
    y, z = gs.Variable("y", np.float32, [1, 4]), gs.Variable("z", np.dtype("uint8"), [])
    scale, axes = gs.Constant("s", np.array(0.5, np.float32)), gs.Constant("axes", np.array([0, 1], dtype=np.int64))
    graph.nodes.append(Node("Mul", "y", [x, scale], [y]))
    graph.nodes.append(gs.Node("ReduceMean", "z", {"keepdims": 0, "axis": [1]}, [y, axes], [z]))
    graph.nodes.append(Node("Act", "act", [y, scale], [gs.Variable("w", np.float32, [1, 4])], {"beta": 1.5}, domain))
    graph.inputs, graph.outputs = [x, spare], [z]
    return graph


@pytest.mark.parametrize("domain", [None, "com.microsoft"])
def test_model_is_that_of_the_exporter(domain: str | None) -> None:
    made, expected = onnx_model(_graph(domain=domain)), exported(_of_graphsurgeon(_graph(domain=domain)))
    assert made == expected
    assert [value.name for value in made.graph.value_info] == ["y", "w"]
    assert [tensor.name for tensor in made.graph.initializer] == ["s", "axes"]


def test_tensors_that_a_lowering_says_little_of() -> None:
    """An input that an op does without, and values without a shape, or without type and shape."""

    def graph() -> gs.Graph:
        made = _graph()
        y, low = made.nodes[0].outputs[0], gs.Constant("low", np.array(0.0, np.float32))
        shapeless, unknown = gs.Variable("shapeless", np.float32), gs.Variable("unknown")
        made.nodes.append(gs.Node("Clip", "c", inputs=[y, gs.Variable.empty(), low], outputs=[shapeless]))
        made.nodes.append(Node("Relu", "r", [shapeless], [unknown]))
        return made

    made = onnx_model(graph())
    assert made == exported(_of_graphsurgeon(graph()))
    assert [value.name for value in made.graph.value_info] == ["y", "w", "shapeless"]
    assert list(made.graph.node[3].input) == ["y", "", "low"]


def test_files_of_a_bundle_are_those_of_the_exporter(small_onnx: Bundle) -> None:
    files = sorted((small_onnx.folder / "onnx").glob("*.onnx"))
    assert files
    for file in files:
        model = onnx.load(str(file), load_external_data=False)
        assert exported(gs.import_onnx(model)).graph.node == model.graph.node
        assert onnx_model(gs.import_onnx(model)) == model


def test_a_weight_stays_where_it_lies(small_onnx: Bundle) -> None:
    part: Path = next((small_onnx.folder / "onnx").glob("*.onnx"))
    model = onnx.load(str(part), load_external_data=False)
    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert outside
    assert not any(t.raw_data for t in outside)
