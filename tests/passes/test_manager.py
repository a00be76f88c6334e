"""The pass manager: order, verification, and what a failure says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny_graphs import tiny_causal
from torch import fx

from llmconv import CheckpointError, PassError
from llmconv.encodings import Encoding, Encodings
from llmconv.graph import Graph, Model, aten, insert, name_of, outputs_of, trace, value_of
from llmconv.graph import run as running
from llmconv.passes import GraphPass, Pass, PassContext, PassManager
from llmconv.passes.verifier import Verifier
from llmconv.testing import random_weights
from llmconv.weights import DictStore

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


def test_pass_that_changes_nothing_is_verified_all_the_same(model: Model, verifier: Verifier) -> None:
    (report,) = PassManager([Nothing()], verifier).run(model)
    assert (report.changed, report.errors) == (False, {"prompt": 0.0, "other": 0.0})


@dataclass(frozen=True)
class Rounding(Scale):
    """Declares that it moves a logit by up to 0.5."""

    name: ClassVar[str] = "rounding"
    tolerance: ClassVar[float | None] = 0.5


def test_bound_is_the_sum_of_what_is_declared_so_far(model: Model, verifier: Verifier) -> None:
    passes = [Scale(1.0), Rounding(1.01), declare("exact"), declare("chooses")]
    type(passes[3]).tolerance = None
    reports = PassManager(passes, verifier).run(model)  # "exact" stands 0.01 from the source, and is not to blame
    assert [r.bound for r in reports] == pytest.approx([3e-5, 0.50003, 0.50006, 0.50006])
    assert reports[2].errors == reports[1].errors
    assert 1e-4 < reports[1].errors["prompt"] < 0.5


def test_bound_counts_passes_that_an_earlier_run_has_done(model: Model, verifier: Verifier) -> None:
    PassManager([Rounding(1.01)]).run(model)
    (report,) = PassManager([Rounding(1.01), Nothing()], verifier).run(model, done=1)
    assert report.bound == pytest.approx(0.50003)


def test_more_than_the_sum_is_refused(model: Model, verifier: Verifier) -> None:
    message = message_of(lambda: PassManager([Scale(1.0), Rounding(9.0)], verifier).run(model))
    assert message.startswith("pass 'rounding' (after scale): graph 'prompt' differs from the source by ")
    assert "more than the 5e-01 declared so far" in message


@dataclass(frozen=True)
class Encodes(Nothing):
    """Gives the attention's output a grid."""

    name: ClassVar[str] = "encodes"
    tolerance: ClassVar[float | None] = None
    floor: ClassVar[float | None] = 20.0

    bits: int = 16

    def run(self, model: Model, context: PassContext) -> bool:
        model.encodings = Encodings({"blocks.0.out": Encoding.from_range(-4.0, 4.0, self.bits)})
        return True


def test_encodings_that_keep_the_floor_are_reported(model: Model, verifier: Verifier) -> None:
    (report,) = PassManager([Encodes()], verifier).run(model)
    assert report.errors == {"prompt": 0.0, "other": 0.0}  # the graphs in float are as they were
    assert all(noise is not None and noise > 60 for noise in report.noise.values())


def test_encodings_below_the_floor_are_refused(model: Model, verifier: Verifier) -> None:
    message = message_of(lambda: PassManager([Encodes(bits=2)], verifier).run(model))
    assert message.startswith("pass 'encodes': graph 'prompt' has logits ")
    assert message.endswith("less than the 20 dB declared; the ranges are wrong for this model")


def test_source_without_numbers_is_no_fault_of_a_pass(model: Model) -> None:
    tensors = {**model.weights.tensors, "head.weight": torch.full((16, 8), float("nan"))}  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="logits are NaN before any pass"):
        Verifier(trace(tiny_causal(), AR, AR, "source"), DictStore(tensors), [1, 2, 3, 4])


def test_a_value_that_runs_in_another_shape_than_it_says_is_named(model: Model, verifier: Verifier) -> None:
    graph = model.graphs["prompt"]
    node = next(n for n in graph.parts[0].graph.nodes if n.op == "call_function" and value_of(n).is_floating_point())
    node.meta["val"] = value_of(node)[..., :1]
    said = rf"'{name_of(node)}' runs as .*, but its meta\['val'\] says \(.*1\) torch\.float32"
    with pytest.raises(PassError, match=said):
        verifier.error(graph, model.weights)


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


def test_graphs_can_be_called_afterwards(model: Model) -> None:
    PassManager([Scale(3.0)]).run(model)
    assert "scaled_by_scale" not in model.graphs["prompt"].parts[0].code
    assert "3.0" in model.graphs["prompt"].parts[0].code


def test_graph_that_reads_less_than_the_tokens_is_compared_on_what_it_reads(model: Model, verifier: Verifier) -> None:
    short = trace(tiny_causal(), 2, 2, "short")
    assert verifier.error(short, model.weights) == pytest.approx(
        0.0, abs=1e-5
    )  # float32 rounding of sums of 8 products


@pytest.mark.parametrize(("whole", "by_rows"), [(0, {"embed.weight"}), (running.WHOLE, set())])
def test_weights_are_read_once_for_a_graph_that_reads_token_by_token(
    model: Model, verifier: Verifier, whole: int, by_rows: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "WHOLE", whole)
    reads: list[str] = []
    rows_read: set[str] = set()

    class Counted(type(model.weights)):  # type: ignore[misc]
        def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
            if rows is None:
                reads.append(name)
            else:
                rows_read.add(name)
            return super().read(name, rows)

    model.weights = Counted(model.weights.tensors)  # type: ignore[attr-defined]
    PassManager([Nothing(), Nothing()], verifier).run(model)
    assert len(reads) == len(set(reads))
    assert rows_read == by_rows
    assert rows_read.isdisjoint(reads)
