"""A pass whose ops no lowering of llmconv's knows, and the lowering of the op that it brings."""

from dataclasses import dataclass

import onnx_graphsurgeon as gs
import torch
from torch import Tensor, fx

from llmconv import hookimpl
from llmconv.graph import aten
from llmconv.lowering import Lowering, LoweringTable
from llmconv.passes import RewritePass


@dataclass(frozen=True)
class FoldSilu(RewritePass):
    """silu(x) becomes relu(x) - |x| * sigmoid(-|x|): the sigmoid's table then holds one half of the axis."""

    name = "fold_silu"
    targets = (aten.silu.default,)

    def replacement(self, x: Tensor) -> Tensor:
        size = x.abs()
        return torch.relu(x) - size * torch.sigmoid(-size)


def lower_abs(lowering: Lowering, node: fx.Node) -> gs.Tensor:
    """|x| is one ONNX node of the same name; quantization is put around it by llmconv."""
    return lowering.emit("Abs", node, [lowering.value(node.args[0])])


@hookimpl
def register_passes() -> list[type[RewritePass]]:
    return [FoldSilu]


@hookimpl
def register_lowerings() -> LoweringTable:
    return {aten.abs.default: lower_abs}
