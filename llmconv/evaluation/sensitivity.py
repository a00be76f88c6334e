"""What each weight's rounding costs by itself, at the logits; and which weights to give more bits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from torch import Tensor

from llmconv.bundle.weights import BundleStore
from llmconv.decoding.torch_runner import HostInputs
from llmconv.errors import BundleError
from llmconv.evaluation.perplexity import divergences, log_probabilities
from llmconv.evaluation.subject import Subject
from llmconv.graph.model import Graph, Model, inputs_of
from llmconv.graph.run import Program
from llmconv.graph.trace import trace
from llmconv.passes.manager import PassManager
from llmconv.quantization.linears import linear_inputs
from llmconv.quantization.segments import segments
from llmconv.weights.derived import Derived
from llmconv.weights.expressions import Expression, Held
from llmconv.weights.held import HeldStore
from llmconv.weights.store import WeightStore

WIDE = 8  # bits that a sensitive weight is given


@dataclass(frozen=True)
class Sensitivity:
    """What the rounding of one weight costs.

    Attributes:
        kl: divergence of the next token's distribution from float's while all other weights are float, mean of all
            positions, nats.
        more: bytes that the weight takes more at 8 bits.
    """

    name: str
    kl: float
    more: int


def sensitivities(
    subject: Subject,
    windows: Sequence[Sequence[int]],
    progress: Callable[[str, int, int], None] = lambda _what, _done, _of: None,
) -> list[Sensitivity]:
    """Of each weight of 4 bits, the largest first.

    Args:
        subject: a bundle whose checkpoint is there.
        windows: of one length.

    Raises:
        BundleError: the checkpoint is gone, or no weight has 4 bits.
    """
    rounded = BundleStore(subject.bundle.folder)
    names = [name for name, entry in rounded.index.items() if entry["bits"] < WIDE]
    if not names:
        raise BundleError(f"{subject.bundle.folder}: no weight has 4 bits; there is nothing to choose from")
    model = _in_float(subject, len(windows[0]))
    walk = _Walk(model.graphs["whole"], HeldStore(model.weights), windows)
    known, found = set(linear_inputs(model.graphs["whole"].parts[0])), []
    for i, name in enumerate(names):
        progress("weights", i, len(names))
        if name in known:
            more = rounded.place(name).nbytes
            found.append(Sensitivity(name, walk.divergence(name, rounded.read(name)), more))
    progress("weights", len(names), len(names))
    return sorted(found, key=lambda s: -s.kl)


def chosen(found: Sequence[Sensitivity], total: int, share: float) -> list[Sensitivity]:
    """The weights that take most of the divergence away for at most a share of all bytes: most for a byte first."""
    room, taken = ceil(total * share), []
    for one in sorted(found, key=lambda s: -s.kl / s.more):
        if one.more <= room:
            room -= one.more
            taken.append(one)
    return taken


def _in_float(subject: Subject, tokens: int) -> Model:
    """The checkpoint after the recipe's structural passes, in one part and without a past."""
    if subject.checkpoint is None:
        raise BundleError(f"{subject.bundle.folder}: {subject.gone.removeprefix('not run: ')}")
    source = subject.checkpoint.source
    graph = trace(source.module(), tokens, tokens, "whole")
    model = Model({"whole": graph}, subject.weights, subject.checkpoint.config)
    PassManager([p for p in subject.checkpoint.passes if p.splits is None]).run(model, subject.context)
    return model


class _Walk:
    """A graph in segments, whose values in float are kept, so that a changed weight costs what comes after it alone."""

    def __init__(self, graph: Graph, weights: WeightStore, windows: Sequence[Sequence[int]]) -> None:
        (part,) = graph.parts
        self._exchanged: dict[str, Expression] = {}
        store = Derived(weights, self._exchanged)
        pieces = segments(part, gives=("logits",))
        self._programs = [Program(piece, store) for piece in pieces]
        self._names = [inputs_of(piece) for piece in pieces]
        self._reads = [{str(n.target) for n in piece.graph.find_nodes(op="get_attr")} for piece in pieces]
        inputs = HostInputs(graph)
        self._values = [inputs.of(window) for window in windows]
        self._expected = self._run(0, keep=True)

    def divergence(self, name: str, weight: Tensor) -> float:
        """Of the logits with this weight in place of the float one."""
        self._exchanged[name] = Held(weight)
        start = next(i for i, read in enumerate(self._reads) if name in read)
        found = self._run(start)
        self._exchanged.clear()
        rows = [divergences(expected, got) for expected, got in zip(self._expected, found, strict=True)]
        return float(np.concatenate(rows).mean())

    def _run(self, start: int, *, keep: bool = False) -> list[np.ndarray]:
        """The log probabilities of each window, from a segment on."""
        values = self._values if keep else [dict(known) for known in self._values]
        outputs: list[dict[str, Tensor]] = []
        for names, program in list(zip(self._names, self._programs, strict=True))[start:]:
            outputs = program.run([{name: known[name] for name in names} for known in values])
            for known, made in zip(values, outputs, strict=True):
                known.update(made)
        return [_log_probabilities(made) for made in outputs]


def _log_probabilities(outputs: Mapping[str, Tensor]) -> np.ndarray:
    (logits,) = outputs.values()
    return log_probabilities(logits.reshape(-1, logits.shape[-1]).numpy()).astype(np.float32)
