"""Step 3 of the proof, on integers: a backend's first runtime against the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from llmconv.bundle.check import Check, at_least
from llmconv.decoding.decoder import Array, Arrays, Runner, widest
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.encodings.noise import Noise
from llmconv.encodings.value import Encodings
from llmconv.evaluation.agreement import Comparison, PairedRunner
from llmconv.evaluation.rounding import RoundingNoise
from llmconv.evaluation.subject import Subject
from llmconv.graph.model import Graph, name_of, outputs_of
from llmconv.heap import trim
from llmconv.passes.verifier import few
from llmconv.weights.held import HELD, HeldStore
from llmconv.work.machine import give_back_memory

# Two implementations of one quantized graph round a few numbers to the other side, a step each, and each such step
# moves what comes after it. In a deep model their roundings end with nothing in common: then they differ by the
# noise of both, 3 dB more than what all roundings of activations together cost a graph, which is measured (on few
# tokens through a graph that reads one: what it costs the others counts for it); few tokens are read, so as much again
# is allowed. A model on which roundings cost little is held to the numbers below.
APART = 6.0  # dB, and so twice as many keys and values
LOWERING_SQNR = 50.0  # dB, ONNX Runtime against the fake-quantized graph: both round at the same places
LOWERING_TOKENS = 40  # compared between the graph and ONNX Runtime
RANGES = "activations: calibrate on text like what the model will read, or put pass rotate first"


def lowering_holds(
    subject: Subject, precision: dict[str, Any], also: Sequence[Callable[[str, Runner], None]] = ()
) -> Iterator[Check]:
    """Step 3: the first runtime against the fake-quantized graph.

    Args:
        precision: takes what rounding each activation costs, by name.
        also: each called with each graph's name and the graph on the first runtime, for what else is asked of it
            there; opening it again takes as long as running it.
    """
    first, rounding = subject.backend.runtimes[0], RoundingNoise(subject.quantized.encodings)
    for name in subject.quantized.graphs:
        subject.progress("prove", f"{name} on {first}")
        tokens, expected, cost = _in_torch(subject, name, rounding)
        give_back_memory()  # the graph's weights, and graphs of earlier steps, before the runtime holds its own
        subject.rounding[name] = cost
        yield Check(3, f"{name}: what rounding all activations costs the logits", f"{cost.logits.sqnr:.1f} dB")
        with subject.open(first, name) as (runner,):
            trim()  # a session leaves as much again of what it was made from
            ratio = Noise().add(expected, subject.decoder(runner).read(tokens)).sqnr
            for ask in also:
                ask(name, runner)
        del runner
        trim()  # likewise, before the next graph's are held
        bound = min(LOWERING_SQNR, cost_of(subject).logits.sqnr - APART)
        yield at_least(3, f"{name} on {first} against the graph, logits", ratio, bound, RANGES)
    precision["activations"] = {value: noise.decibels for value, noise in rounding.noise.items()}
    precision["clipped"] = rounding.clipped
    yield Check(3, "values beyond the ranges that calibration found", _clipped(rounding))


def _clipped(rounding: RoundingNoise) -> str:
    """How many values the held-out tokens take out of their range, and how far the worst is."""
    if not (found := rounding.clipped):
        return f"none of {len(rounding.seen)}"
    name, share = next(iter(found.items()))
    return f"{len(found)} of {len(rounding.seen)}, most {share:.2g} of the numbers of '{name}'"


def cost_of(subject: Subject) -> Comparison:
    """What rounding the activations changes: of the graphs, which share encodings, where it was seen to change most."""
    return min(subject.rounding.values(), key=lambda found: found.logits.sqnr, default=Comparison())


class _WithIntegers:
    """A graph in torch, whose keys and values are known as integers as well."""

    def __init__(self, runner: TorchRunner, graph: Graph, encodings: Encodings | None) -> None:
        self.runner, self.name, self.ar, self.context = runner, runner.name, runner.ar, runner.context
        self.inputs, self.outputs, self.raw = runner.inputs, runner.outputs, Arrays()
        known = {} if encodings is None else encodings.values
        nodes = {name: node for part in graph.parts for name, node in outputs_of(part).items()}
        kept = {name: name_of(nodes[name]) for name, t in self.outputs.items() if t.slot is not None}
        self._encodings = {name: known[value] for name, value in kept.items() if value in known}

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """The graph's outputs; those of keys and values as integers in `raw`."""
        found = self.runner.run(inputs)
        integers = {
            n: e.quantize(torch.from_numpy(found[n])).numpy().astype(e.dtype) for n, e in self._encodings.items()
        }
        self.raw = {**found, **integers}
        return found


def _in_torch(subject: Subject, name: str, rounding: RoundingNoise) -> tuple[list[int], Array, Comparison]:
    """Tokens, a graph's logits for them, and what rounding its activations changes."""
    model, found = subject.quantized, Comparison()
    graph = model.graphs[name]
    observer = rounding.observe if graph is widest(model.graphs.values()) else None  # whose tokens are most
    once = graph.ar >= LOWERING_TOKENS  # read by a single run; its weights are not worth their memory
    weights = HeldStore(model.weights, 0 if once else HELD)
    rounded = TorchRunner(graph, weights, model.encodings, observer)
    pair = PairedRunner(
        _WithIntegers(rounded, graph, model.encodings),
        _WithIntegers(TorchRunner(graph, weights), graph, model.encodings),
        found,
    )
    tokens = subject.windows[0][: few(rounded, max(LOWERING_TOKENS, graph.ar))]
    return tokens, subject.decoder(pair).read(tokens), found
