"""What must hold after every pass, whatever it says of itself; broken passes are blamed, and by node."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import distribution, version
from typing import Any, ClassVar

import pytest
import torch
from tiny_graphs import tiny_causal
from torch import fx

from llmconv import PassError
from llmconv.graph import (
    IO,
    MADE_BY,
    NAME,
    Graph,
    Model,
    aten,
    insert,
    name_of,
    output_node,
    outputs_of,
    set_outputs,
    trace,
)
from llmconv.passes import GraphPass, Pass, PassContext, PassManager
from llmconv.passes.contract import Snapshot
from llmconv.passes.verifier import Verifier
from llmconv.testing import random_weights
from llmconv.weights import DictStore

AR = 4
Action = Callable[[fx.GraphModule], Any]


@dataclass(frozen=True)
class Does(GraphPass):
    """Does one thing to each part and says what it returns."""

    name: ClassVar[str] = "does"

    action: Action

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        return self.action(part)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Rough(Does):
    """As a pass that chooses encodings."""

    name: ClassVar[str] = "rough"
    tolerance: ClassVar[float | None] = None


@dataclass(frozen=True)
class Whole(Pass):
    """Does one thing to the model and says True."""

    name: ClassVar[str] = "whole"

    action: Callable[[Model], Any]

    def run(self, model: Model, context: PassContext) -> bool:
        self.action(model)
        return True


@pytest.fixture
def model() -> Model:
    module = tiny_causal()
    return Model({"prompt": trace(module, AR, AR, "prompt")}, random_weights(module), None)


@pytest.fixture
def verifier(model: Model) -> Verifier:
    return Verifier(trace(tiny_causal(), AR, AR, "source"), model.weights, [1, 2, 3, 4])


def mixed(part: fx.GraphModule) -> fx.Node:
    """The projection out of attention, which goes into the residual."""
    return next(n for n in part.graph.nodes if n.op == "call_function" and name_of(n) == "blocks.0.out")


def after(node: fx.Node, factor: float, name: str) -> None:
    with node.graph.inserting_after(node):
        new = insert(node.graph, aten.mul.Tensor, (node, factor), name)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def zero(part: fx.GraphModule) -> None:
    after(mixed(part), 0.0, "zero")


def unnamed(part: fx.GraphModule) -> bool:
    node = mixed(part)
    with part.graph.inserting_after(node):
        new = part.graph.call_function(aten.neg.default, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return True


def wrong_shape(part: fx.GraphModule) -> bool:
    mixed(part).meta["val"] = mixed(part).meta["val"].new_empty((1, 7, 3))
    return True


def wrong_dtype(part: fx.GraphModule) -> bool:
    mixed(part).meta["val"] = mixed(part).meta["val"].to(torch.float16)
    return True


def stale_consumer(part: fx.GraphModule) -> bool:
    """Halves what a node gives, truly, without a word to what takes it."""
    node = mixed(part)
    with part.graph.inserting_after(node):
        new = insert(part.graph, aten.slice.Tensor, (node, 2, 0, 1), "half")
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return True


def impossible(part: fx.GraphModule) -> bool:
    head = outputs_of(part)["logits"]
    head.args = (head.args[0], mixed(part).args[1])  # 8 columns into a weight of 8 by 8, then 16 are said
    return True


def same_name(part: fx.GraphModule) -> bool:
    after(mixed(part), 1.0, name_of(mixed(part)))
    return True


def no_output(part: fx.GraphModule) -> bool:
    part.graph.erase_node(output_node(part))
    return True


def mute_output(part: fx.GraphModule) -> bool:
    set_outputs(part, {"logits": outputs_of(part)["logits"]}, {"other": IO("logits")})
    return True


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize(
    ("action", "said"),
    [
        (unnamed, "node 'neg_default': has no structural name or no meta['val']; make nodes with insert"),
        (wrong_shape, "node 'blocks.0.out': meta['val'] says (1, 7, 3) float32, but what runs gives (1, 4, 8) float32"),
        (wrong_dtype, "node 'blocks.0.out': meta['val'] says (1, 4, 8) float16, but what runs gives (1, 4, 8) float32"),
        (impossible, "node 'head': meta['val'] says (1, 4, 16) float32, but what runs gives (1, 4, 8) float32"),
        (same_name, "two values are named 'blocks.0.out'; names must be unique"),
        (no_output, "is left with 0 output nodes; set_outputs replaces outputs"),
        (mute_output, "each output must say what it means; set_outputs replaces outputs"),
    ],
)
def test_broken_graph_is_blamed_on_the_pass_that_ran(
    model: Model, verifier: Verifier, action: Action, said: str, verified: bool
) -> None:
    passes = [Does(action), Whole(lambda _model: None)]
    with pytest.raises(PassError) as caught:
        PassManager(passes, verifier if verified else None).run(model)
    assert str(caught.value).startswith("pass 'does': graph 'prompt'")
    assert str(caught.value).endswith(said)


def test_what_takes_a_changed_value_must_fit_it(model: Model) -> None:
    PassManager([Does(stale_consumer)]).run(model)  # (1, 4, 1) is broadcast to the residual's (1, 4, 8): it fits
    bad = Model({"prompt": trace(tiny_causal(), AR, AR, "prompt")}, model.weights, None)

    def cut(part: fx.GraphModule) -> bool:
        node = mixed(part)
        with part.graph.inserting_after(node):
            new = insert(part.graph, aten.slice.Tensor, (node, 2, 0, 3), "cut")
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        return True

    with pytest.raises(PassError, match=r"^pass 'does': graph 'prompt', node '.*': its op cannot take its arguments"):
        PassManager([Does(cut)]).run(bad)


def test_change_without_a_word_is_an_error(model: Model) -> None:
    def lie(part: fx.GraphModule) -> bool:
        zero(part)
        return False

    with pytest.raises(PassError) as caught:
        PassManager([Does(lie)]).run(model)
    assert str(caught.value) == (
        "pass 'does': says that it changed nothing (False), but changed graph 'prompt' at node 'zero'; return True"
    )


@pytest.mark.parametrize(("says", "kind"), [(None, "NoneType"), ("yes", "str"), (1, "int")])
def test_a_word_that_is_neither_true_nor_false_is_an_error(model: Model, says: Any, kind: str) -> None:
    with pytest.raises(
        PassError, match=f"pass 'does': returned {kind}; return True or False, whether anything changed"
    ):
        PassManager([Does(lambda _part: says)]).run(model)


def test_an_exit_is_an_error_as_any_other(model: Model) -> None:
    with pytest.raises(PassError, match=r"pass 'does' failed: SystemExit: 3 \(.*test_contract\.py:\d+\)"):
        PassManager([Does(lambda _part: sys.exit(3))]).run(model)


def test_an_output_that_is_lost_is_named(model: Model) -> None:
    def lose(part: fx.GraphModule) -> bool:
        (logits,) = outputs_of(part).values()
        set_outputs(part, {"other": logits}, {"other": IO("hidden")})
        return True

    with pytest.raises(PassError, match=r"graph 'prompt' no longer gives its logits; set_outputs takes all outputs"):
        PassManager([Does(lose)]).run(model)


def test_what_is_no_aten_op_is_named(model: Model) -> None:
    def eager(part: fx.GraphModule) -> bool:
        node = next(n for n in part.graph.nodes if n.target is aten.transpose.int)
        with part.graph.inserting_after(node):
            new = insert(part.graph, torch.neg, (node,), "negated")
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        return True

    with pytest.raises(PassError, match=r"node 'negated': calls .*neg, which is no ATen op; insert one of llmconv"):
        PassManager([Does(eager)]).run(model)


@pytest.mark.parametrize(
    "quiet",
    [
        lambda model: setattr(model, "weights", DictStore({})),
        lambda model: setattr(model.graphs["prompt"], "rope", {"rope_cos": torch.zeros(4, 2)}),
    ],
)
def test_change_beside_the_graphs_is_seen_too(model: Model, quiet: Callable[[Model], None]) -> None:
    before = Snapshot.of(model)
    quiet(model)
    assert before.difference(Snapshot.of(model)) == "the weights, the encodings or a RoPE table"


def test_argument_set_to_itself_is_no_change(model: Model) -> None:
    def idle(part: fx.GraphModule) -> bool:
        for node in part.graph.nodes:
            node.args = tuple(node.args)
        return False

    (report,) = PassManager([Does(idle)]).run(model)
    assert not report.changed


def test_change_of_one_constant_is_seen(model: Model) -> None:
    before = Snapshot.of(model)
    node = next(n for n in model.graphs["prompt"].parts[0].graph.nodes if n.target is aten.transpose.int)
    node.args = (node.args[0], node.args[2], node.args[1])  # the same function, as other arguments
    assert before.difference(Snapshot.of(model)) == f"graph 'prompt' at node '{name_of(node)}'"


def test_saying_true_without_a_change_is_reported_truly(model: Model) -> None:
    (report,) = PassManager([Whole(lambda _model: None)]).run(model)
    assert not report.changed


def test_pass_over_the_whole_model_is_finished_and_stamped(model: Model) -> None:
    def add(model: Model) -> None:
        part = model.graphs["prompt"].parts[0]
        with part.graph.inserting_before(output_node(part)):
            insert(part.graph, aten.neg.default, (mixed(part),), "dead")
        after(mixed(part), 1.0, "once")

    PassManager([Whole(add)]).run(model)
    made = {n.meta[NAME]: n.meta.get(MADE_BY) for n in model.graphs["prompt"].parts[0].graph.nodes}
    assert "dead" not in made
    assert {name: by for name, by in made.items() if by} == {"once": "whole"}


def test_a_node_of_somebody_elses_pass_names_the_distribution(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which an error of a later room can say whose pass it was."""
    monkeypatch.setattr("llmconv.plugins.frame.installed", lambda: {"test_contract": [distribution("pytest")]})
    PassManager([Whole(lambda model: after(mixed(model.graphs["prompt"].parts[0]), 1.0, "once"))]).run(model)
    made = {n.meta[NAME]: n.meta.get(MADE_BY) for n in model.graphs["prompt"].parts[0].graph.nodes}
    assert made["once"] == f"whole (pytest {version('pytest')})"


def test_a_node_that_does_something_else_now_is_the_pass_s_and_its_readers_are_not(model: Model) -> None:
    def turn(model: Model) -> None:
        part = model.graphs["prompt"].parts[0]
        (power,) = part.graph.find_nodes(op="call_function", target=aten.pow.Scalar)
        power.update_arg(0, 20.0)
        (linear, *_) = part.graph.find_nodes(op="call_function", target=aten.linear.default)
        after(linear.args[0], 1.0, "once")  # which the linear now reads

    PassManager([Whole(turn)]).run(model)
    nodes = model.graphs["prompt"].parts[0].graph.nodes
    assert {n.meta[NAME]: n.target for n in nodes if n.meta.get(MADE_BY) == "whole"} == {
        "once": aten.mul.Tensor,
        "rotary.pow": aten.pow.Scalar,
    }


def test_tangled_graph_is_blamed_on_the_pass_over_the_model_that_left_it(model: Model) -> None:
    def tangle(model: Model) -> None:
        part = model.graphs["prompt"].parts[0]
        outputs_of(part)["logits"].append(mixed(part))

    with pytest.raises(PassError, match=r"^pass 'whole' failed: RuntimeError: "):
        PassManager([Whole(tangle), Does(lambda _part: False)]).run(model)


def test_pass_that_chooses_encodings_must_leave_the_float_graph(model: Model, verifier: Verifier) -> None:
    def scale(part: fx.GraphModule) -> bool:
        after(mixed(part), 1.5, "scaled")
        return True

    with pytest.raises(PassError, match=r"^pass 'rough': graph 'prompt' differs from the source by "):
        PassManager([Rough(scale)], verifier).run(model)


def test_exact_weights_in_place_of_the_checkpoints_are_compared_with_the_checkpoint(
    model: Model, verifier: Verifier
) -> None:
    tensors = dict(model.weights.tensors)  # type: ignore[attr-defined]

    def store(factor: float) -> Callable[[Model], None]:
        scaled = DictStore({**tensors, "head.weight": tensors["head.weight"] * factor})
        return lambda model: setattr(model, "weights", scaled)

    (report,) = PassManager([Whole(store(1.0 + 1e-6))], verifier).run(replace(model))
    assert report.changed
    assert 0 < report.errors["prompt"] <= Whole.tolerance
    with pytest.raises(PassError, match=r"^pass 'whole': graph 'prompt' differs from the source by "):
        PassManager([Whole(store(2.0))], verifier).run(model)
