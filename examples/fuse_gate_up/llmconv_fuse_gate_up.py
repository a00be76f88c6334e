"""Fuse the gate and up projections of each MLP into one linear over one new weight."""

from dataclasses import dataclass

from torch import fx

from llmconv import hookimpl
from llmconv.graph import Model, aten, finish, insert, insert_weight, name_of, shape_of
from llmconv.passes import Pass, PassContext
from llmconv.weights import Derived, Joined, Stored

LINEAR = aten.linear.default


@dataclass(frozen=True)
class FuseGateUp(Pass):
    """gate(x) and up(x) become the halves of gate_up(x), whose weight is both on top of each other."""

    name = "fuse_gate_up"

    def run(self, model: Model, context: PassContext) -> bool:
        table: dict[str, Joined] = {}
        for part in (part for graph in model.graphs.values() for part in graph.parts):
            for gate in part.graph.find_nodes(op="call_function", target=LINEAR):
                if name_of(gate).endswith(".gate_proj"):
                    table |= fuse(part, gate)
            finish(part)
        model.weights = Derived(model.weights, table)
        return bool(table)


def fuse(part: fx.GraphModule, gate: fx.Node) -> dict[str, Joined]:
    x, weight = gate.args
    up = next(user for user in x.users if user.target is LINEAR and name_of(user).endswith(".up_proj"))
    rows, columns = shape_of(weight)
    both, name = (
        name_of(gate).replace("gate_proj", "gate_up_proj"),
        name_of(weight).replace("gate_proj", "gate_up_proj"),
    )
    with part.graph.inserting_before(min(gate, up)):
        fused = insert(part.graph, LINEAR, (x, insert_weight(part, name, (2 * rows, columns))), both)
        halves = [
            insert(part.graph, aten.slice.Tensor, (fused, -1, i * rows, (i + 1) * rows), f"{both}.{i}") for i in (0, 1)
        ]
    for old, new in zip((gate, up), halves, strict=True):
        old.replace_all_uses_with(new)
    return {name: Joined((Stored(name_of(weight)), Stored(name_of(up.args[1]))))}


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [FuseGateUp]
