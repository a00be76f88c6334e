"""Runs a recipe's passes in the recipe's order, verifies each one on request, and reports what each did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llmconv.errors import LlmconvError, PassError
from llmconv.graph.model import Graph, Model
from llmconv.heap import trim
from llmconv.passes.base import Pass, said
from llmconv.passes.context import PassContext
from llmconv.passes.contract import Snapshot, enforce
from llmconv.passes.observer import Observers
from llmconv.passes.verifier import Verifier
from llmconv.plugins.frame import ANYTHING, blame, third_party
from llmconv.work.collector import collector_paused
from llmconv.work.machine import peak_memory

Announce = Callable[[str], None]


@dataclass(frozen=True)
class PassReport:
    """What one pass did.

    Attributes:
        seconds: of the pass alone, without its verification.
        changed: whether anything is other than before.
        nodes: graph name -> (nodes before, nodes after), over all parts.
        errors: graph name -> largest difference of a logit to the source's in float, as a share of the largest logit,
            where the pass was verified.
        bound: what such a difference may be: the sum of the tolerances that the passes so far declare.
        noise: graph name -> SQNR in dB of the logits on the encodings that the pass chose, where it declares a floor.
        peak_rss: largest memory of this process so far, bytes.
    """

    name: str
    seconds: float
    changed: bool
    nodes: dict[str, tuple[int, int]]
    errors: dict[str, float] = field(default_factory=dict)
    bound: float = 0.0
    noise: dict[str, float | None] = field(default_factory=dict)
    peak_rss: int = 0


class PassManager:
    """Runs passes over a model.

    Args:
        passes: in the order in which they run.
        verifier: when given, what the graphs compute is compared with the source after every pass.
        announce: called with the name of each pass before it runs.
        observers: shown the model before and after each pass.

    Raises:
        PassError: the order breaks what a pass declares.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        verifier: Verifier | None = None,
        announce: Announce = lambda _name: None,
        observers: Observers | None = None,
    ) -> None:
        self.passes, self.verifier, self.announce = list(passes), verifier, announce
        self.observers = observers or Observers()
        self._check_order()

    def _check_order(self) -> None:
        names = [p.name for p in self.passes]
        for i, p in enumerate(self.passes):
            for needed in p.needs:
                if needed not in names[:i]:
                    raise PassError(f"pass '{p.name}' needs '{needed}' before it; add or move it in the recipe")
            for earlier in p.runs_after:
                if earlier in names[i + 1 :]:
                    raise PassError(f"pass '{p.name}' must come after '{earlier}'; move it in the recipe")

    def run(
        self, model: Model, context: PassContext | None = None, *, done: int = 0, stop: int | None = None
    ) -> list[PassReport]:
        """Run every pass.

        Args:
            context: what the run brings; nothing by default.
            done: how many of the passes have run on this model already.
            stop: how many of them are to have run in the end; by default all.

        Raises:
            PassError: a pass failed, left a graph that is not sound or changed without saying so, or the graphs
                differ from the source by more than the passes so far declare.
        """
        context, reports = context or PassContext(), []
        before = Snapshot.of(model)
        for i, p in enumerate(self.passes[done:stop], start=done):
            self.announce(p.name)
            given = replace(context, widths=partial(self.widths, model, done=i + 1))
            with self.observers.of_pass(p.name, model):
                report, before = self._run_one(i, model, given, before)
            reports.append(report)
        for graph in model.graphs.values():
            for part in graph.parts:
                part.recompile()
        return reports

    @property
    def structural(self) -> int:
        """How many passes come before the first that changes numbers."""
        return next((i for i, p in enumerate(self.passes) if not p.structural), len(self.passes))

    def widths(self, model: Model, *, done: int = 0) -> dict[str, float]:
        """The bits that the passes, but for the first `done`, will give to values and weights, by structural name.

        Raises:
            PassError: a pass failed.
        """
        widths: dict[str, float] = {}
        for i, p in enumerate(self.passes[done:], start=done):
            with named(p, [q.name for q in self.passes[:i]]):
                widths |= p.widths(model)
        return widths

    def _run_one(self, i: int, model: Model, context: PassContext, before: Snapshot) -> tuple[PassReport, Snapshot]:
        """Run a pass on a model that is as in `before`; what it did, and the model as it is then."""
        p, counts = self.passes[i], {g.name: _count(g) for g in model.graphs.values()}
        bound = sum(q.tolerance or 0.0 for q in self.passes[: i + 1])
        with named(p, [q.name for q in self.passes[:i]]):
            with collector_paused() if p.structural else nullcontext():
                if self.verifier is not None and (p.needs_calibration or not p.structural):
                    self.verifier.forget()  # calibration holds weights of its own
                    trim()
                start = time.perf_counter()
                says = said(p.run(model, context))
                seconds = time.perf_counter() - start
                now = Snapshot.of(model)
                where = before.difference(now)
                if where is not None and not says:
                    raise PassError(f"says that it changed nothing ({says}), but changed {where}; return True")
                now = enforce(before, now, model, _maker(p))
            errors, noise = self._errors(model, bound), self._noise(model, p.floor)
            if self.verifier is not None:
                trim()  # what reading weights has taken
        nodes = {g.name: (counts.get(g.name, 0), _count(g)) for g in model.graphs.values()}
        report = PassReport(p.name, seconds, where is not None, nodes, errors, bound, noise, peak_memory())
        return report, now

    def _errors(self, model: Model, bound: float) -> dict[str, float]:
        """How far each graph is from the source, in float."""
        errors: dict[str, float] = {}
        if self.verifier is None:
            return errors
        for graph in model.graphs.values():
            error = self.verifier.error(graph, model.weights)
            if error is None:
                continue
            errors[graph.name] = error
            if not error <= bound:  # also true of NaN
                raise PassError(
                    f"graph '{graph.name}' differs from the source by {error:.2g} of the largest logit, "
                    f"more than the {bound:.0e} declared so far; the pass is wrong for this model"
                )
        return errors

    def _noise(self, model: Model, floor: float | None) -> dict[str, float | None]:
        """What the encodings of a model's values cost each graph, where a pass declares a floor."""
        found: dict[str, float | None] = {}
        if self.verifier is None or floor is None or model.encodings is None:
            return found
        for graph in model.graphs.values():
            noise = self.verifier.noise(graph, model.weights, model.encodings)
            if noise is None:
                continue
            found[graph.name] = noise.decibels
            if not noise.sqnr >= floor:  # also true of NaN
                raise PassError(
                    f"graph '{graph.name}' has logits {noise.sqnr:.1f} dB over the noise of its encodings, "
                    f"less than the {floor:.0f} dB declared; the ranges are wrong for this model"
                )
        return found


@contextmanager
def named(p: Any, before: Sequence[str], kind: str = "pass") -> Iterator[None]:
    """Whatever goes wrong inside is an error that names the pass and those before it."""
    try:
        yield
    except LlmconvError as error:
        raise PassError(f"{_place(p, before, kind)}: {error}") from error
    except ANYTHING as error:
        raise PassError(f"{_place(p, before, kind)} failed: {blame(p, error)}") from error


def _maker(p: Pass) -> str:
    """What nodes say of the pass that made them: its name, and whose it is where it is not llmconv's own."""
    known = third_party(p)
    return f"{p.name} ({known})" if known else p.name


def _place(p: Any, before: Sequence[str], kind: str) -> str:
    """The pass, whose it is where it is not llmconv's own, and the passes before it."""
    known = ", ".join(filter(None, (third_party(p), f"after {', '.join(before)}" if before else "")))
    return f"{kind} '{p.name}'" + (f" ({known})" if known else "")


def _count(graph: Graph) -> int:
    return sum(len(part.graph.nodes) for part in graph.parts)
