"""Steps 1 and 2 of the proof, in float: the source against another implementation, the passes against the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from llmconv.bundle.check import Check, at_most
from llmconv.decoding.decoder import Array, Decoder, gives_all_rows
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.evaluation.perplexity import perplexity
from llmconv.evaluation.subject import SMALL, Subject
from llmconv.graph.trace import trace
from llmconv.passes.manager import PassManager, PassReport
from llmconv.passes.verifier import few, relative_error
from llmconv.prepare.resolve import Checked
from llmconv.prepare.text import held_out
from llmconv.prepare.trace import make_verifier, trace_graphs, verified_tokens
from llmconv.sources.source import Source
from llmconv.weights.held import HeldStore
from llmconv.weights.store import WeightStore
from llmconv.work.collector import collector_paused
from llmconv.work.local import beside
from llmconv.work.machine import give_back_memory

PATIENCE = 60  # seconds from when it is asked for; of a small model it takes 5 in all
FLOAT_TOLERANCE = 3e-5  # of the largest logit, float32: some hundred sums that are reordered, 6e-8 each


@dataclass(frozen=True)
class SourceInFloat:
    """What a source computes on held-out windows.

    Attributes:
        error: the largest difference of a logit from another implementation's, over the largest; or why there is none.
        perplexity: None where it was not measured.
        hashes: sha256 of the tensors that were read, by name.
    """

    error: float | str
    perplexity: float | None
    hashes: dict[str, str]


@contextmanager
def computed_ahead(checked: Checked) -> Iterator[Future[SourceInFloat] | None]:
    """What step 1 asks for, computed in a process beside the conversion of a small model, of which a core is idle.

    The import of transformers is the most of it. None where the model is not small, or no text tells its perplexity.
    """
    small = sum(p.numel() for p in checked.source.module().parameters()) <= SMALL
    if not small or not (windows := held_out(checked)):
        yield None
        return
    with beside(lambda: _computed(checked.source, checked.source.weights(), windows)) as ahead:
        yield ahead


def source_is_right(
    subject: Subject, figures: dict[str, float], ahead: Future[SourceInFloat] | None = None
) -> Iterator[Check]:
    """Step 1: the module against an independent implementation.

    Args:
        figures: takes the source's perplexity, for which its weights are at hand here.
        ahead: as of `computed_ahead`; where that failed it is computed here, which says what is wrong.
    """
    name = "source against transformers, largest difference of a logit over the largest logit"
    subject.progress("prove", "source")
    if subject.checkpoint is None:
        yield Check(1, name, subject.gone)
        return
    if (found := _told(ahead)) is not None:
        subject.check_converted(found.hashes)
    else:
        source, weights = subject.checkpoint.source, subject.weights  # which say what is damaged; a reference may fail
        found = _computed(source, weights, subject.windows, subject.unmeasured is None, subject.progress)
    if isinstance(found.error, str):
        yield Check(1, name, f"not run: {found.error}")
    else:
        yield at_most(1, name, found.error, FLOAT_TOLERANCE)
    if subject.unmeasured is None and found.perplexity is not None:
        figures["float"] = found.perplexity


def _told(ahead: Future[SourceInFloat] | None) -> SourceInFloat | None:
    """What the process beside the conversion has computed; None where it failed, or does not end."""
    with suppress(TimeoutError):
        if ahead is not None and ahead.exception(PATIENCE) is None:
            return ahead.result()
    return None


def _computed(
    source: Source,
    weights: WeightStore,
    windows: Sequence[list[int]],
    measured: bool = True,
    progress: Callable[[str, str], None] = lambda _stage, _item: None,
) -> SourceInFloat:
    """Of the first window, and, where it is to be measured, the perplexity of all."""
    ids = windows[0]
    expected = _by_reference(source, ids)
    graph = trace(source.module(), len(ids), len(ids), "source")
    decoder = Decoder([TorchRunner(graph, HeldStore(weights))], None)
    error = expected if isinstance(expected, str) else relative_error(expected, decoder.read(ids))
    found = None
    if measured:
        progress("prove", "perplexity in float")
        found = perplexity(decoder, windows)
    names = {str(n.target) for part in graph.parts for n in part.graph.find_nodes(op="get_attr")}
    return SourceInFloat(error, found, {name: sha for name in names if (sha := weights.sha256(name)) is not None})


def _by_reference(source: Source, ids: list[int]) -> Array | str:
    """Logits of another implementation, or why there is none; its weights are gone before others are read."""
    with collector_paused():  # the library's reader of GGUF makes a million objects of a vocabulary, three times
        reference = source.reference()
    if isinstance(reference, str):
        return reference
    with torch.no_grad():
        found: Array = reference(torch.tensor([ids]))[0].numpy()
    del reference
    give_back_memory()
    return found


def passes_hold(subject: Subject, reports: Sequence[PassReport] | None) -> Iterator[Check]:
    """Step 2: the graphs after each pass against the source, then the graphs against each other.

    Args:
        reports: of passes that were verified just now; without them the structural passes are verified again.
    """
    subject.progress("prove", "passes")
    if subject.checkpoint is None:
        yield Check(2, "passes against the source", subject.gone)
        return
    model = trace_graphs(subject.checkpoint, subject.weights)
    tokens = verified_tokens(subject.checkpoint, model)
    verifier = None if reports else make_verifier(subject.checkpoint, model)
    again = PassManager(subject.checkpoint.passes, verifier).run(model, subject.context)
    subject.float_weights = model.weights
    for report in reports or again:
        for graph, error in report.errors.items():
            if graph in model.graphs:
                name = f"{graph} after {report.name}, largest difference of a logit over the largest"
                yield at_most(2, name, error, report.bound)
    weights = verifier.held(model.weights) if verifier else HeldStore(model.weights)
    runners = [TorchRunner(graph, weights) for graph in model.graphs.values()]
    if not all(gives_all_rows(r) for r in runners):
        yield Check(2, "graphs against each other", "not run: a graph gives the last row of its logits alone")
        return
    rows = [subject.decoder(r).read(tokens[: few(r, len(tokens))]) for r in runners]
    count = min(len(r) for r in rows)
    error = max(relative_error(rows[0][:count], r[:count]) for r in rows)
    del weights, runners, model
    give_back_memory()  # graphs, which hold each other
    name = f"graphs against each other at each of {count} positions, KV cache"
    yield at_most(2, name, error, again[-1].bound if again else FLOAT_TOLERANCE)
