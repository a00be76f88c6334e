"""Fold the weight of each RMSNorm into the linears behind it."""

from dataclasses import dataclass

import torch

from llmconv import hookimpl
from llmconv.graph import Model, aten, name_of, shape_of
from llmconv.passes import Pass, PassContext
from llmconv.weights import Columns, Derived, Expression, Held, Stored


@dataclass(frozen=True)
class FoldNorm(Pass):
    """linear(norm(x) * g, W) becomes linear(norm(x) * 1, W * g): the graphs stay as they are, their weights change."""

    name = "fold_norm"

    def run(self, model: Model, context: PassContext) -> bool:
        table: dict[str, Expression] = {}
        for part in (part for graph in model.graphs.values() for part in graph.parts):
            for norm in part.graph.find_nodes(op="call_function", target=aten.rms_norm.default):
                if all(user.target is aten.linear.default for user in norm.users):
                    gain = norm.args[2]
                    table[name_of(gain)] = Held(torch.ones(shape_of(gain)))
                    for linear in norm.users:
                        weight = name_of(linear.args[1])
                        table[weight] = Columns(Stored(weight), Stored(name_of(gain)))
        model.weights = Derived(model.weights, table)
        return bool(table)


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [FoldNorm]
