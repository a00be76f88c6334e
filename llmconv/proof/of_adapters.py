"""Steps 2 to 4 of the proof for each adapter that a bundle can switch on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from llmconv.bundle.bundle import Bundle
from llmconv.bundle.check import Check, at_most
from llmconv.decoding.decoder import Decoder, gives_all_rows, reach
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.evaluation.subject import Subject
from llmconv.graph.trace import trace
from llmconv.passes.manager import PassManager
from llmconv.passes.verifier import relative_error
from llmconv.prepare.trace import VERIFIED_TOKENS, trace_graphs
from llmconv.proof.on_others import OtherRuntimes
from llmconv.proof.on_runtimes import lowering_holds
from llmconv.weights.held import HeldStore


def adapters_hold(subject: Subject) -> Iterator[Check]:
    """Switched on, each adapter gives what it gives merged, in float; and the same on each runtime."""
    plain, rounding = subject.bundle, subject.rounding
    for name in plain.adapters:
        subject.bundle, subject.rounding = Bundle(plain.folder, name), {}
        precision: dict[str, Any] = {"runtimes": []}  # the report shows the model's own
        try:
            yield _as_merged(subject, name)
            with OtherRuntimes(subject, precision) as others:
                for check in chain(lowering_holds(subject, precision, (others.record,)), others.checks()):
                    yield replace(check, name=f"adapter {name}: {check.name}")
        finally:
            subject.bundle, subject.rounding = plain, rounding


def _as_merged(subject: Subject, adapter: str) -> Check:
    """The graphs in float with the adapter as inputs, against the source with the adapter merged."""
    title = f"adapter {adapter} as inputs against merged, largest difference of a logit over the largest"
    subject.progress("prove", f"adapter {adapter}")
    checked = subject.checkpoint
    if checked is None or not all(folder.exists() for folder in checked.recipe.model.switchable.values()):
        return Check(2, title, subject.gone if checked is None else "not run: the adapter's folder is gone")
    model = trace_graphs(checked, subject.weights)
    bound = PassManager(checked.passes).run(model, subject.context)[-1].bound
    ids = subject.windows[0][:VERIFIED_TOKENS]
    merged = HeldStore(checked.source.with_adapter(adapter))
    whole = trace(checked.source.module(), len(ids), len(ids), "source")
    expected = Decoder([TorchRunner(whole, merged)], None).read(ids)
    weights, errors = HeldStore(model.weights), []
    for graph in model.graphs.values():
        runner = TorchRunner(graph, weights)
        if not gives_all_rows(runner):
            continue
        count = reach(runner, len(ids))
        found = subject.decoder(runner).read(ids[:count])
        errors.append(relative_error(expected[:count], found))
    return at_most(2, title, max(errors), bound) if errors else Check(2, title, "not run: no graph gives all logits")
