"""Base classes of passes: what they do for a subclass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar

import pytest
import torch
from tiny_graphs import build_part
from torch import fx

from llmconv.graph import MADE_BY, Graph, Model, aten, insert, name_of
from llmconv.passes import GraphPass, PassContext, PassManager, RewritePass
from llmconv.weights import DictStore

Rewrite = Callable[[fx.GraphModule, Graph], bool]


def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
    relu = insert(graph, aten.relu.default, (nodes["x"],), "relu")
    return {"y": insert(graph, aten.neg.default, (relu,), "neg")}


def model_of(parts: int = 1, graphs: tuple[str, ...] = ("prompt", "token")) -> Model:
    made = {name: Graph(name, 1, 1, [build_part(body, {"x": (2,)}) for _ in range(parts)]) for name in graphs}
    return Model(made, DictStore({}), None)


def nodes_of(model: Model, graph: str = "prompt") -> dict[str, fx.Node]:
    return {name_of(n): n for n in model.graphs[graph].parts[0].graph.nodes if n.op == "call_function"}


@dataclass(frozen=True)
class Told(GraphPass):
    """Does what it is told."""

    name: ClassVar[str] = "told"

    action: Rewrite

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        return self.action(part, graph)


def double_output(part: fx.GraphModule, _graph: Graph) -> bool:
    out = part.graph.output_node().args[0]["y"]
    with part.graph.inserting_after(out):
        new = insert(part.graph, aten.mul.Tensor, (out, 2.0), "doubled")
    out.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return True


def test_every_part_of_every_graph_is_rewritten() -> None:
    seen: list[tuple[str, int]] = []

    def look(part: fx.GraphModule, graph: Graph) -> bool:
        seen.append((graph.name, graph.parts.index(part)))
        return len(seen) == 1

    model = model_of(parts=2)
    assert Told(look).run(model, PassContext())  # the first alone changed, the others are visited none the less
    assert seen == [("prompt", 0), ("prompt", 1), ("token", 0), ("token", 1)]


def test_nothing_changed() -> None:
    assert not Told(lambda _part, _graph: False).run(model_of(), PassContext())


def test_new_nodes_are_stamped_and_old_ones_are_not() -> None:
    model = model_of()
    PassManager([Told(double_output)]).run(model)
    assert {name: n.meta.get(MADE_BY) for name, n in nodes_of(model, "token").items()} == {
        "relu": None,
        "neg": None,
        "doubled": "told",
    }


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Told(double_output).action = double_output  # type: ignore[misc]


@dataclass(frozen=True)
class ByClamp(RewritePass):
    """Replaces relu by clamp."""

    name: ClassVar[str] = "by_clamp"
    targets: ClassVar[tuple[Any, ...]] = (aten.relu.default,)

    skip: str = ""

    def why_not(self, node: fx.Node) -> str | None:
        return "it is to be left alone" if name_of(node) == self.skip else None

    def replacement(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(x, min=0) + 0.0


def test_targets_are_replaced() -> None:
    model = model_of()
    PassManager([ByClamp()]).run(model)
    nodes = nodes_of(model)
    assert [str(n.target) for n in nodes.values()] == ["aten.clamp.default", "aten.add.Tensor", "aten.neg.default"]
    assert list(nodes) == ["relu.clamp", "relu", "neg"]
    assert nodes["relu.clamp"].meta[MADE_BY] == nodes["relu"].meta[MADE_BY] == "by_clamp"
    assert MADE_BY not in nodes["neg"].meta


def test_second_run_finds_nothing() -> None:
    model = model_of()
    ByClamp().run(model, PassContext())
    assert not ByClamp().run(model, PassContext())


def test_node_that_does_not_apply_stays() -> None:
    model = model_of()
    before = nodes_of(model)
    assert not ByClamp(skip="relu").run(model, PassContext())
    assert nodes_of(model) == before


def test_replacement_may_depend_on_the_target() -> None:
    @dataclass(frozen=True)
    class Both(ByClamp):
        targets: ClassVar[tuple[Any, ...]] = (aten.relu.default, aten.neg.default)

        def replacement_for(self, target: torch._ops.OpOverload) -> Callable[..., torch.Tensor]:
            return (lambda x: x * 0.0) if target is aten.neg.default else self.replacement

    model = model_of()
    assert Both().run(model, PassContext())
    assert [str(n.target) for n in nodes_of(model).values()][-1] == "aten.mul.Tensor"


@pytest.mark.parametrize(("tolerance", "structural"), [(1e-4, True), (0.0, True), (None, False)])
def test_pass_with_a_tolerance_is_structural(tolerance: float | None, structural: bool) -> None:
    @dataclass(frozen=True)
    class Some(Told):
        pass

    Some.tolerance = tolerance
    assert Some(double_output).structural is structural
