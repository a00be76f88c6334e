"""An ONNX pass: counts axes from the front, for a compiler that knows no negative ones."""

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from llmconv import hookimpl
from llmconv.lowering import OnnxPass

OPS = ("Softmax", "Concat", "RMSNormalization")


@dataclass(frozen=True)
class PositiveAxes(OnnxPass):
    """axis = -1 of a value with four axes becomes axis = 3."""

    name = "positive_axes"
    tolerance = 0.0  # no number changes

    def rewrite(self, graph: gs.Graph) -> bool:
        counted = [node for node in graph.nodes if node.op in OPS and node.attrs.get("axis", -1) < 0]
        for node in counted:
            node.attrs["axis"] = node.attrs.get("axis", -1) + len(node.inputs[0].shape)
        return bool(counted)


@hookimpl
def register_onnx_passes() -> list[type[OnnxPass]]:
    return [PositiveAxes]
