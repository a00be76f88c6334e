"""Steps 3 and 4 of the proof, on integers: the first runtime against the graph, the others against the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llmconv.bundle.check import Check, at_least
from llmconv.decoding.decoder import Decoder, reach
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.encodings.noise import Noise
from llmconv.evaluation.agreement import Comparison, PairedRunner
from llmconv.evaluation.rounding import RoundingNoise
from llmconv.evaluation.subject import Subject
from llmconv.weights.held import HeldStore

# Two implementations of one quantized graph round a few numbers to the other side, a step each, and each such step
# moves what comes after it. They may be as far apart as all roundings together move the logits, and where those move
# them less than this, this far.
LOWERING_SQNR = 50.0  # dB, ONNX Runtime against the fake-quantized graph: both round at the same places
SIMULATOR_SQNR = 45.0  # dB, the HTP's integer arithmetic against float arithmetic between the same roundings
KV_OFF = 0.01  # share of 8-bit keys and values that may be more than one step off
GREEDY_AGREEMENT, GREEDY_POSITIONS = 0.98, 500  # through a graph that reads many tokens at once
GREEDY_PROMPT, GREEDY_TOKENS = 8, 32  # read, then written, through a graph that reads one
LOWERING_TOKENS = 40  # compared between the graph and ONNX Runtime
RANGES = "activations: calibrate on text like what the model will read, or put pass rotate first"


def lowering_holds(subject: Subject, precision: dict[str, Any]) -> Iterator[Check]:
    """Step 3: the first runtime against the fake-quantized graph.

    Args:
        precision: takes what rounding each activation costs, by name.
    """
    first, model = subject.backend.runtimes[0], subject.quantized
    rounding, weights = RoundingNoise(model.encodings), HeldStore(model.weights)
    for name, graph in model.graphs.items():
        subject.progress("prove", f"{name} on {first}")
        rounded, exact = (
            TorchRunner(graph, weights, e, o) for e, o in ((model.encodings, rounding.observe), (None, None))
        )
        tokens = subject.windows[0][: reach(rounded, max(LOWERING_TOKENS, graph.ar))]
        expected = subject.decoder(rounded).read(tokens)
        cost = subject.rounding[name] = Noise().add(subject.decoder(exact).read(tokens), expected).sqnr
        yield Check(3, f"{name}: what rounding all activations costs the logits", f"{cost:.1f} dB")
        with subject.open(first, name) as (runner,):
            ratio = Noise().add(expected, subject.decoder(runner).read(tokens)).sqnr
        yield at_least(3, f"{name} on {first} against the graph, logits", ratio, min(LOWERING_SQNR, cost), RANGES)
    precision["activations"] = {value: noise.decibels for value, noise in rounding.noise.items()}


def runtimes_agree(subject: Subject, precision: dict[str, Any]) -> Iterator[Check]:
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
            tensors = {tensor: noise.decibels for tensor, noise in pair.noise.items()}
            precision["runtimes"].append({"graph": name, "first": first, "second": other, "tensors": tensors})
            bound = min(SIMULATOR_SQNR, subject.rounding.get(name, SIMULATOR_SQNR))
            yield from _compared(f"{name} on {other} against {first}", comparison, graph.ar, bound)


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


def _compared(where: str, found: Comparison, ar: int, bound: float = SIMULATOR_SQNR) -> Iterator[Check]:
    yield at_least(4, f"{where}, logits", found.logits.sqnr, bound, RANGES)
    off = found.kv_off_share
    yield Check(4, f"{where}, keys and values over 1 step off", f"{off:.3%}", f"≤ {KV_OFF:.0%}", off <= KV_OFF)
    agreement = GREEDY_AGREEMENT if ar > 1 else 1.0
    same, count = found.same_token + (0 if ar > 1 else found.ties), found.positions
    ties = f" ({found.ties} of them within one step)" if found.ties and ar == 1 else ""
    name = f"{where}, same greedy token"
    yield Check(4, name, f"{same} of {count}{ties}", f"≥ {agreement:.0%}", same >= agreement * count)
