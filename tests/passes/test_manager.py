"""The pass manager: order, verification, and what a failure says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
from tiny_graphs import tiny_causal
from torch import fx

from llmconv import CheckpointError, PassError
from llmconv.graph import Graph, Model, aten, insert, outputs_of, trace
from llmconv.passes import GraphPass, Pass, PassContext, PassManager
from llmconv.passes.verifier import Verifier
from llmconv.testing import random_weights

AR = 4


@dataclass(frozen=True)
class Nothing(GraphPass):
    """Changes nothing."""

    name: ClassVar[str] = "nothing"

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        return False


@dataclass(frozen=True)
class Scale(GraphPass):
    """Multiplies the logits; in one graph alone where that is named."""

    name: ClassVar[str] = "scale"

    factor: float
    only: str | None = None

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        if self.only not in (None, graph.name):
            return False
        logits = outputs_of(part)["logits"]
        with part.graph.inserting_after(logits):
            new = insert(part.graph, aten.mul.Tensor, (logits, self.factor), f"scaled_by_{self.name}")
        logits.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        return True


@dataclass(frozen=True)
class Raises(Pass):
    """Fails as it is told."""

    name: ClassVar[str] = "raises"

    error: Exception

    def run(self, model: Model, context: PassContext) -> bool:
        raise self.error


def declare(name: str, runs_after: tuple[str, ...] = (), needs: tuple[str, ...] = ()) -> Pass:
    kind = type(name, (Nothing,), {"name": name, "runs_after": runs_after, "needs": needs})
    return kind()  # type: ignore[no-any-return]


@pytest.fixture
def model() -> Model:
    module = tiny_causal()
    graphs = {name: trace(module, AR, AR, name) for name in ("prompt", "other")}
    return Model(graphs, random_weights(module), None)


@pytest.fixture
def verifier(model: Model) -> Verifier:
    return Verifier(trace(tiny_causal(), AR, AR, "source"), model.weights, [1, 2, 3, 4])


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(PassError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_needed_pass_must_come_before() -> None:
    first, second = declare("first"), declare("second", needs=("first",))
    PassManager([first, second])
    for passes in ([second], [second, first]):
        assert message_of(lambda passes=passes: PassManager(passes)) == (
            "pass 'second' needs 'first' before it; add or move it in the recipe"
        )


def test_runs_after_holds_where_both_are_there() -> None:
    first, second = declare("first"), declare("second", runs_after=("first",))
    PassManager([first, second])
    PassManager([second])
    assert message_of(lambda: PassManager([second, first])) == (
        "pass 'second' must come after 'first'; move it in the recipe"
    )


def test_reports_say_what_each_pass_did(model: Model) -> None:
    announced: list[str] = []
    reports = PassManager([Nothing(), Scale(1.0, only="other")], announce=announced.append).run(model)
    assert announced == ["nothing", "scale"]
    assert [(r.name, r.changed) for r in reports] == [("nothing", False), ("scale", True)]
    count = len(model.graphs["prompt"].parts[0].graph.nodes)
    assert reports[0].nodes == {"prompt": (count, count), "other": (count, count)}
    assert reports[1].nodes == {"prompt": (count, count), "other": (count, count + 1)}
    assert all(r.seconds >= 0 and r.peak_rss > 0 and not r.errors for r in reports)


def test_passes_that_are_done_are_not_run_again(model: Model) -> None:
    (report,) = PassManager([Raises(ValueError("never")), Nothing()]).run(model, done=1)
    assert report.name == "nothing"


def test_verified_pass_reports_its_errors(model: Model, verifier: Verifier) -> None:
    (report,) = PassManager([Scale(1.0 + 1e-6)], verifier).run(model)
    assert set(report.errors) == {"prompt", "other"}
    assert all(0 < error <= Scale.tolerance for error in report.errors.values())


def test_wrong_result_names_the_pass_those_before_it_and_the_graph(model: Model, verifier: Verifier) -> None:
    passes = [Nothing(), declare("second"), Scale(1.5, only="other")]
    message = message_of(lambda: PassManager(passes, verifier).run(model))
    assert message.startswith("pass 'scale' (after nothing, second): graph 'other' differs from the source by ")


def test_nan_is_a_failure(model: Model, verifier: Verifier) -> None:
    message = message_of(lambda: PassManager([Scale(float("nan"))], verifier).run(model))
    assert "graph 'prompt' differs from the source by nan" in message


def test_unchanged_model_is_not_verified(model: Model, verifier: Verifier) -> None:
    (report,) = PassManager([Nothing()], verifier).run(model)
    assert report.errors == {}


def test_pass_without_a_tolerance_is_not_verified(model: Model, verifier: Verifier) -> None:
    @dataclass(frozen=True)
    class Rough(Scale):
        tolerance: ClassVar[float | None] = None

    (report,) = PassManager([Rough(2.0)], verifier).run(model)
    assert report.changed
    assert report.errors == {}


def test_any_exception_becomes_a_pass_error(model: Model) -> None:
    cause = ValueError("bad shape\nand a long story")
    with pytest.raises(PassError) as caught:
        PassManager([Nothing(), Raises(cause)]).run(model)
    said = str(caught.value)
    assert said.startswith("pass 'raises' (after nothing) failed: ValueError: bad shape and a long story (")
    assert "test_manager.py:" in said  # the line that raised
    assert caught.value.__cause__ is cause


def test_error_on_purpose_keeps_its_words(model: Model) -> None:
    cause = CheckpointError("no tensor 'x'")
    with pytest.raises(PassError) as caught:
        PassManager([Raises(cause)]).run(model)
    assert str(caught.value) == "pass 'raises': no tensor 'x'"
    assert caught.value.__cause__ is cause


def test_graph_that_cannot_be_run_names_the_pass(model: Model, verifier: Verifier) -> None:
    @dataclass(frozen=True)
    class Misshape(GraphPass):
        name: ClassVar[str] = "misshape"

        def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
            node = next(n for n in part.graph.nodes if n.target is aten.flatten.using_ints)
            node.args = (node.args[0], 1)  # where all but its own meta["val"] have another shape
            return True

    message = message_of(lambda: PassManager([Misshape()], verifier).run(model))
    assert message.startswith("pass 'misshape' failed: RuntimeError: ")


def test_graphs_can_be_called_afterwards(model: Model) -> None:
    PassManager([Scale(3.0)]).run(model)
    assert "scaled_by_scale" not in model.graphs["prompt"].parts[0].code
    assert "3.0" in model.graphs["prompt"].parts[0].code


def test_graph_that_reads_less_than_the_tokens_is_compared_on_what_it_reads(model: Model, verifier: Verifier) -> None:
    short = trace(tiny_causal(), 2, 2, "short")
    assert verifier.error(short, model.weights) == pytest.approx(
        0.0, abs=1e-5
    )  # float32 rounding of sums of 8 products
