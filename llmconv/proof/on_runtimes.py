"""Steps 3 and 4 of the proof, on integers: the first runtime against the graph, the others against the first."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import Any

import torch

from llmconv.bundle.bundle import Bundle
from llmconv.bundle.check import Check, at_least
from llmconv.decoding.decoder import Array, Arrays, Decoder, reach
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.encodings.noise import Noise
from llmconv.encodings.value import Encodings
from llmconv.evaluation.agreement import Comparison, PairedRunner
from llmconv.evaluation.rounding import RoundingNoise
from llmconv.evaluation.subject import Subject
from llmconv.graph.model import Graph, name_of, outputs_of
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
SIMULATOR_SQNR = 45.0  # dB, the HTP's integer arithmetic against float arithmetic between the same roundings
KV_OFF = 0.01  # share of 8-bit keys and values that may be more than one step off
GREEDY_AGREEMENT, GREEDY_POSITIONS = 0.98, 500  # through a graph that reads many tokens at once
GREEDY_PROMPT, GREEDY_TOKENS = 8, 32  # read, then written, through a graph that reads one
LEAST_PROMPT, LEAST_TOKENS = 2, 3  # likewise, of a model that takes long
SHOWN = 3  # near-ties whose logits are shown
NEAR = 4.0  # times what roundings move a logit by: the gap of two choices that they may exchange
# A simulator takes its time for each weight in each run, and as much again for every 32 tokens: this many weights are a
# minute or two. A small model fills the numbers above.
SIMULATED = 500_000_000
SIDE_BY_SIDE = 20_000_000  # weights up to which all graphs are simulated at once: they take little memory
LOWERING_TOKENS = 40  # compared between the graph and ONNX Runtime
RANGES = "activations: calibrate on text like what the model will read, or put pass rotate first"


def lowering_holds(subject: Subject, precision: dict[str, Any]) -> Iterator[Check]:
    """Step 3: the first runtime against the fake-quantized graph.

    Args:
        precision: takes what rounding each activation costs, by name.
    """
    first, rounding = subject.backend.runtimes[0], RoundingNoise(subject.quantized.encodings)
    for name in subject.quantized.graphs:
        subject.progress("prove", f"{name} on {first}")
        tokens, expected, cost = _in_torch(subject, name, rounding)
        give_back_memory()  # the graph's weights, before the runtime holds its own
        subject.rounding[name] = cost
        yield Check(3, f"{name}: what rounding all activations costs the logits", f"{cost.logits.sqnr:.1f} dB")
        with subject.open(first, name) as (runner,):
            ratio = Noise().add(expected, subject.decoder(runner).read(tokens)).sqnr
        del runner
        give_back_memory()  # likewise, before the next graph's are held
        bound = min(LOWERING_SQNR, _cost(subject).logits.sqnr - APART)
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


def _cost(subject: Subject) -> Comparison:
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
        integers = {n: e.quantize(torch.from_numpy(found[n])).numpy() for n, e in self._encodings.items()}
        self.raw = {**found, **integers}
        return found


def _in_torch(subject: Subject, name: str, rounding: RoundingNoise) -> tuple[list[int], Array, Comparison]:
    """Tokens, a graph's logits for them, and what rounding its activations changes."""
    model, found = subject.quantized, Comparison()
    graph = model.graphs[name]
    once = graph.ar >= LOWERING_TOKENS  # read by a single run; its weights are not worth their memory
    weights = HeldStore(model.weights, 0 if once else HELD)
    rounded = TorchRunner(graph, weights, model.encodings, rounding.observe)
    pair = PairedRunner(
        _WithIntegers(rounded, graph, model.encodings),
        _WithIntegers(TorchRunner(graph, weights), graph, model.encodings),
        found,
    )
    tokens = subject.windows[0][: few(rounded, max(LOWERING_TOKENS, graph.ar))]
    return tokens, subject.decoder(pair).read(tokens), found


def runtimes_agree(subject: Subject, precision: dict[str, Any]) -> Iterator[Check]:
    """Step 4: each further runtime against the first, on the same inputs.

    Args:
        precision: takes how far apart they are, tensor by tensor.
    """
    first, *others = subject.backend.runtimes
    every = subject.bundle.simulated()
    for other, bundle in product(others, every):
        where = f"{other} for {bundle.manifest['target']['name']}" if len(every) > 1 else other
        if lacking := subject.runtime(other).lacks(bundle):
            yield Check(4, f"{where} against {first}", f"not run: the bundle lacks {lacking}")
            continue
        names = list(subject.bundle.graphs)
        at_once = len(names) if subject.elements <= SIDE_BY_SIDE else 1
        for some in (names[i : i + at_once] for i in range(0, len(names), at_once)):
            subject.progress("prove", f"{', '.join(some)} on {where}")
            found = _at_once(subject, bundle, first, other, some)
            for name, (comparison, tensors) in zip(some, found, strict=True):
                precision["runtimes"].append({"graph": name, "first": first, "second": where, "tensors": tensors})
                ar = subject.bundle.graphs[name].ar
                yield from _compared(f"{name} on {where} against {first}", comparison, ar, _cost(subject))


Apart = tuple[Comparison, dict[str, float | None]]  # two runtimes in all, and tensor by tensor in dB


def _at_once(subject: Subject, bundle: Bundle, first: str, other: str, names: Sequence[str]) -> list[Apart]:
    """Graphs on two runtimes, side by side; one that fails, and Ctrl-C, ends the others."""
    stop = threading.Event()
    with ExitStack() as opened, ThreadPoolExecutor(len(names)) as pool:
        try:
            return list(pool.map(partial(_on_both, subject, bundle, first, other, opened, stop), names))
        except BaseException:
            stop.set()
            opened.close()  # with what they run on: a simulator may take a minute for a run
            raise


def _on_both(
    subject: Subject, bundle: Bundle, first: str, other: str, opened: ExitStack, stop: threading.Event, name: str
) -> Apart:
    """A graph on two runtimes, which `opened` takes; nothing is run once `stop` is set."""
    graph, comparison = subject.bundle.graphs[name], Comparison()
    (a,), (b,) = (opened.enter_context(subject.open(runtime, name, bundle)) for runtime in (first, other))
    if stop.is_set():
        return comparison, {}
    pair = PairedRunner(a, b, comparison)
    decoder, runs = subject.decoder(pair), round(SIMULATED / (subject.elements * (1 + graph.ar / 32)))
    if graph.ar > 1:
        _read_held_out(decoder, subject.windows, min(GREEDY_POSITIONS, max(1, runs) * graph.ar))
    else:
        _continue_greedily(decoder, subject.windows[0], runs)
    return comparison, {tensor: noise.decibels for tensor, noise in pair.noise.items()}


def _read_held_out(decoder: Decoder, windows: Sequence[Sequence[int]], positions: int) -> None:
    """Whole runs of held-out text, without padding, until so many positions are read."""
    runner, read = decoder.runners[0], 0
    for window in windows:
        if read >= positions:
            return
        wanted = -(-(positions - read) // runner.ar) * runner.ar
        length = min(wanted, reach(runner, len(window)) // runner.ar * runner.ar)
        decoder.reset()
        decoder.read(window[:length])
        read += length


def _continue_greedily(decoder: Decoder, window: Sequence[int], runs: int) -> None:
    """A few held-out tokens, then what the first runtime writes, in so many runs."""
    prompt = min(GREEDY_PROMPT, max(LEAST_PROMPT, runs // 4))
    logits = decoder.read(window[:prompt])
    for _ in range(min(GREEDY_TOKENS, max(LEAST_TOKENS, runs + 1 - prompt)) - 1):
        logits = decoder.read([int(logits[-1].argmax())])


def _compared(where: str, found: Comparison, ar: int, cost: Comparison) -> Iterator[Check]:
    """A comparison, judged by what rounding the activations changes in the same graph."""
    yield at_least(4, f"{where}, logits", found.logits.sqnr, min(SIMULATOR_SQNR, cost.logits.sqnr - APART), RANGES)
    off, most = found.kv_off_share, max(KV_OFF, 2 * cost.kv_off_share)
    name = f"{where}, keys and values over 1 step off"
    yield Check(4, name, f"{off:.3%}", f"≤ {most:.1%}", off <= most, RANGES)
    agreement, near = GREEDY_AGREEMENT if ar > 1 else 1.0, found.near(NEAR * cost.rms)
    same, count = found.same_token + found.ties + len(near), found.positions
    ties = ""
    if same > found.same_token:
        shown = "; ".join(f"{a:.2f} and {b:.2f}" for a, b in near[:SHOWN])
        ties = f" ({same - found.same_token} of them near-ties{': ' if shown else ''}{shown})"
    yield Check(
        4, f"{where}, same greedy token", f"{same} of {count}{ties}", f"≥ {agreement:.0%}", same >= agreement * count
    )
