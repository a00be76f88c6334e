"""The proof: what a bundle computes, compared step by step with what the checkpoint computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from llmconv.bundle.bundle import Bundle
from llmconv.bundle.check import Check, at_least, at_most
from llmconv.decoding.decoder import Decoder, gives_all_rows, reach
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.evaluation.agreement import Comparison, PairedRunner, sqnr
from llmconv.evaluation.perplexity import perplexity
from llmconv.evaluation.precision import RoundingNoise
from llmconv.evaluation.subject import Subject
from llmconv.graph.trace import trace
from llmconv.passes.manager import PassManager, PassReport
from llmconv.plugins.registry import Registry
from llmconv.prepare.trace import make_verifier, trace_graphs
from llmconv.report import page

FLOAT_TOLERANCE = 1e-4  # at a logit, float32: rounding of reordered sums
LOWERING_SQNR = 50.0  # dB, ONNX Runtime against the fake-quantized graph: both round at the same places
SIMULATOR_SQNR = 45.0  # dB, the HTP's integer arithmetic against float arithmetic between the same roundings
KV_OFF = 0.01  # share of 8-bit keys and values that may be more than one step off
GREEDY_AGREEMENT, GREEDY_POSITIONS = 0.98, 500  # through a graph that reads many tokens at once
GREEDY_PROMPT, GREEDY_TOKENS = 8, 32  # read, then written, through a graph that reads one
ACTIVATION_RATIO = 1.01  # a wrong range costs more
WEIGHT_RATIO = 1.15  # round to nearest on a small model
LOWERING_TOKENS = 40  # compared between the graph and ONNX Runtime


def prove(
    bundle: Bundle,
    *,
    registry: Registry | None = None,
    progress: Callable[[str, str], None] = lambda _stage, _item: None,
    passes: Sequence[PassReport] | None = None,
) -> list[Check]:
    """Run the proof and keep it in the bundle's report.

    Args:
        progress: called with a stage and an item before each piece of work.
        passes: reports of passes that were verified just now; by default the passes run and are verified again.

    Returns:
        One check a line; the proof holds when none has `passed` false.

    Raises:
        BundleError: a file is missing or differs from the manifest.
    """
    bundle.check_files()
    subject = Subject(bundle, registry or Registry.load(), progress)
    figures: dict[str, float] = dict(bundle.report.get("perplexity", {}))
    precision: dict[str, Any] = {"runtimes": []}
    checks = list(
        chain(
            _source(subject),
            _passes(subject, passes),
            _lowering(subject, precision),
            _runtimes(subject, precision),
            subject.backend.prove(bundle),
            _perplexity(subject, figures),
        )
    )
    proof = [c.to_dict() for c in checks]
    bundle.write_report({**bundle.report, "perplexity": figures, "precision": precision, "proof": proof})
    page.write(bundle)
    return checks


def _source(subject: Subject) -> Iterator[Check]:
    """Step 1: the module against an independent implementation."""
    name = "source against transformers, largest difference of a logit"
    subject.progress("prove", "source")
    if subject.checkpoint is None:
        yield Check(1, name, subject.gone)
        return
    source = subject.checkpoint.source
    reference = source.reference()
    if isinstance(reference, str):
        yield Check(1, name, f"not run: {reference}")
        return
    ids = subject.windows[0]
    with torch.no_grad():
        expected = reference(torch.tensor([ids]))[0].numpy()
    graph = trace(source.module(), len(ids), len(ids), "source")
    found = Decoder([TorchRunner(graph, source.weights())], None).read(ids)
    yield at_most(1, name, float(np.abs(expected - found).max()), FLOAT_TOLERANCE)


def _passes(subject: Subject, reports: Sequence[PassReport] | None) -> Iterator[Check]:
    """Step 2: each structural pass against the source, then the graphs against each other."""
    subject.progress("prove", "passes")
    if subject.checkpoint is None:
        yield Check(2, "passes against the source", subject.gone)
        return
    model = trace_graphs(subject.checkpoint, subject.checkpoint.source.weights())
    verifier = make_verifier(subject.checkpoint, model)
    again = PassManager(subject.checkpoint.passes, None if reports else verifier).run(model)
    subject.float_weights = model.weights
    for report in reports or again:
        for graph, error in report.errors.items():
            if graph in model.graphs:
                name = f"{graph} after {report.name}, largest difference of a logit"
                yield at_most(2, name, error, FLOAT_TOLERANCE)
    runners = [TorchRunner(graph, model.weights) for graph in model.graphs.values()]
    if not all(gives_all_rows(r) for r in runners):
        yield Check(2, "graphs against each other", "not run: a graph gives the last row of its logits alone")
        return
    rows = [subject.decoder(r).read(verifier.tokens[: reach(r, len(verifier.tokens))]) for r in runners]
    count = min(len(r) for r in rows)
    error = max(float(np.abs(r[:count] - rows[0][:count]).max()) for r in rows)
    yield at_most(2, f"graphs against each other at each of {count} positions, KV cache", error, FLOAT_TOLERANCE)


def _lowering(subject: Subject, precision: dict[str, Any]) -> Iterator[Check]:
    """Step 3: the first runtime against the fake-quantized graph.

    Args:
        precision: takes what rounding each activation costs, by name.
    """
    first, model = subject.backend.runtimes[0], subject.quantized
    noise = RoundingNoise(model.encodings)
    for name, graph in model.graphs.items():
        subject.progress("prove", f"{name} on {first}")
        torch_runner = TorchRunner(graph, model.weights, model.encodings, noise.observe)
        tokens = subject.windows[0][: reach(torch_runner, max(LOWERING_TOKENS, graph.ar))]
        expected = subject.decoder(torch_runner).read(tokens)
        with subject.open(first, name) as (runner,):
            found = subject.decoder(runner).read(tokens)
        yield at_least(3, f"{name} on {first} against the graph, logits", sqnr(expected, found), LOWERING_SQNR)
    precision["activations"] = noise.ratios()


def _runtimes(subject: Subject, precision: dict[str, Any]) -> Iterator[Check]:
    """Step 4: each further runtime against the first, on the same inputs.

    Args:
        precision: takes how far apart they are, tensor by tensor.
    """
    first, *others = subject.backend.runtimes
    for other in others:
        if lacking := subject.runtime(other).lacks(subject.bundle):
            yield Check(4, f"{other} against {first}", f"not run: the bundle lacks {lacking}")
            continue
        for name, graph in subject.bundle.graphs.items():
            subject.progress("prove", f"{name} on {other}")
            comparison = Comparison()
            with subject.open(first, name) as (a,), subject.open(other, name) as (b,):
                pair = PairedRunner(a, b, comparison)
                decoder = subject.decoder(pair)
                if graph.ar > 1:
                    _read_held_out(decoder, subject.windows)
                else:
                    _continue_greedily(decoder, subject.windows[0])
            found = {"graph": name, "first": first, "second": other, "tensors": pair.tensors.ratios()}
            precision["runtimes"].append(found)
            yield from _compared(f"{name} on {other} against {first}", comparison, graph.ar)


def _read_held_out(decoder: Decoder, windows: Sequence[Sequence[int]]) -> None:
    """Whole runs of held-out text, without padding, until enough positions are read."""
    runner, read = decoder.runners[0], 0
    for window in windows:
        if read >= GREEDY_POSITIONS:
            return
        length = reach(runner, len(window)) // runner.ar * runner.ar
        decoder.reset()
        decoder.read(window[:length])
        read += length


def _continue_greedily(decoder: Decoder, window: Sequence[int]) -> None:
    """A few held-out tokens, then what the first runtime writes."""
    logits = decoder.read(window[:GREEDY_PROMPT])
    for _ in range(GREEDY_TOKENS - 1):
        logits = decoder.read([int(logits[-1].argmax())])


def _compared(where: str, found: Comparison, ar: int) -> Iterator[Check]:
    yield at_least(4, f"{where}, logits", found.sqnr, SIMULATOR_SQNR)
    off = found.kv_off_share
    yield Check(4, f"{where}, keys and values over 1 step off", f"{off:.3%}", f"≤ {KV_OFF:.0%}", off <= KV_OFF)
    agreement = GREEDY_AGREEMENT if ar > 1 else 1.0
    same, count = found.same_token + (0 if ar > 1 else found.ties), found.positions
    ties = f" ({found.ties} of them within one step)" if found.ties and ar == 1 else ""
    name = f"{where}, same greedy token"
    yield Check(4, name, f"{same} of {count}{ties}", f"≥ {agreement:.0%}", same >= agreement * count)


def _perplexity(subject: Subject, figures: dict[str, float]) -> Iterator[Check]:
    """Step 6: float, activations quantized alone, and everything quantized.

    Args:
        figures: by kind; those of the conversion stay where they cannot be measured again.
    """
    if subject.described.recipe.verify.text is None:
        yield Check(6, "perplexity", "not run: verify.text names no held-out text")
        return
    model, windows = subject.quantized, subject.windows
    name, graph = max(model.graphs.items(), key=lambda item: item[1].ar)
    if not gives_all_rows(TorchRunner(graph, model.weights)):
        yield Check(6, "perplexity", f"not run: graph '{name}' gives the last row of its logits alone")
        return
    if subject.checkpoint is not None:
        source = subject.checkpoint.source
        weights, length = source.weights(), len(windows[0])
        subject.progress("prove", "perplexity in float")
        whole = TorchRunner(trace(source.module(), length, length, "source"), weights)
        figures["float"] = perplexity(Decoder([whole], None), windows)
        subject.progress("prove", "perplexity, activations quantized")
        runner = TorchRunner(graph, subject.float_weights or weights, model.encodings)
        figures["activations"] = perplexity(subject.decoder(runner), windows)
    runtime = subject.backend.runtimes[0]
    subject.progress("prove", f"perplexity on {runtime}")
    with subject.open(runtime, name) as (opened,):
        figures["quantized"] = perplexity(subject.decoder(opened), windows)
    yield from _judged(figures, runtime, measured_now=subject.checkpoint is not None)


def _judged(figures: dict[str, float], runtime: str, *, measured_now: bool) -> Iterator[Check]:
    if "float" not in figures:
        yield Check(6, f"perplexity on {runtime}", f"{figures['quantized']:.2f} (nothing to compare with)")
        return
    when = "" if measured_now else " (measured at conversion)"
    yield Check(6, "perplexity of the source in float", f"{figures['float']:.2f}{when}")
    for kind, bound, what in (
        ("activations", ACTIVATION_RATIO, "activations quantized alone, over float"),
        ("quantized", WEIGHT_RATIO, f"everything quantized, on {runtime}, over float"),
    ):
        ratio = figures[kind] / figures["float"]
        measured = f"{figures[kind]:.2f}, ratio {ratio:.4f}"
        yield Check(6, f"perplexity, {what}", measured, f"ratio ≤ {bound}", ratio <= bound)
