"""Step 4 of the proof, on integers: a backend's other runtimes against its first, while other steps go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from llmconv.bundle.bundle import Bundle
from llmconv.bundle.check import Check, at_least
from llmconv.cores import threads_left
from llmconv.decoding.decoder import Decoder, Runner, reach
from llmconv.encodings.noise import Noise
from llmconv.evaluation.agreement import Comparison, PairedRunner, Recorded, Recorder
from llmconv.evaluation.subject import SMALL, Subject
from llmconv.proof.on_runtimes import APART, RANGES, cost_of

SIMULATOR_SQNR = 45.0  # dB, the HTP's integer arithmetic against float arithmetic between the same roundings
KV_OFF = 0.01  # share of keys and values that may be more than one step of 8 bits off
GREEDY_AGREEMENT, GREEDY_POSITIONS = 0.98, 500  # through a graph that reads many tokens at once
GREEDY_PROMPT, GREEDY_TOKENS = 8, 32  # read, then written, through a graph that reads one
LEAST_PROMPT, LEAST_TOKENS = 2, 3  # likewise, of a model that takes long
SHOWN = 3  # near-ties whose logits are shown
NEAR = 4.0  # times what roundings move a logit by: the gap of two choices that they may exchange
# A simulator takes its time for each weight in each run, and as much again for every 32 tokens: this many weights are a
# minute or two. A small model fills the numbers above.
SIMULATED = 500_000_000
SHIFT = 10  # runs of a simulator of a small model; the next ones are another's, so that none is waited for alone

Apart = tuple[Comparison, dict[str, Noise]]  # two runtimes in all, and tensor by tensor


@dataclass
class _Other:
    """A further runtime, on the bundle as one of its chipsets has it.

    Attributes:
        lacking: what of the bundle it cannot do without.
        found: by graph, what comes of its runs, some after others.
    """

    runtime: str
    bundle: Bundle
    where: str
    lacking: str | None
    found: dict[str, list[Future[Apart]]] = field(default_factory=dict)


class OtherRuntimes:
    """Repeats on each other runtime what the first has run: graph after graph, or several at once of a small model.

    A simulator is a process of its own that computes on one core. So it begins as soon as there is something to repeat,
    and is waited for when all else is done; torch leaves it a core, since threads that must wait for one take longer
    than fewer threads do. Used as a context manager: an error in the block, and Ctrl-C, end it.

    Args:
        precision: takes how far apart runtimes are, tensor by tensor.
    """

    def __init__(self, subject: Subject, precision: dict[str, Any]) -> None:
        self.subject, self.precision = subject, precision
        self.first, *names = subject.backend.runtimes
        every = subject.bundle.simulated()
        self._others = [
            _Other(
                name,
                bundle,
                f"{name} for {bundle.manifest['target']['name']}" if len(every) > 1 else name,
                subject.runtime(name).lacks(bundle),
            )
            for name, bundle in product(names, every)
        ]
        self._stop, self._opened = threading.Event(), ExitStack()

    @cached_property
    def _at_once(self) -> int:
        return len(self.subject.bundle.graphs) if self.subject.elements <= SMALL else 1

    @property
    def _able(self) -> list[_Other]:
        return [other for other in self._others if other.lacking is None]

    def __enter__(self) -> OtherRuntimes:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(TemporaryDirectory(prefix="llmconv-")))
            self._pool = stack.enter_context(ThreadPoolExecutor(self._at_once, "other-runtime"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._opened.close()  # with what they run on: a simulator may take a minute for a run
        self._stack.close()

    def record(self, name: str, runner: Runner) -> None:
        """Run a graph on the first runtime, and begin to repeat that on the others."""
        if not self._able:
            return
        folder = self._folder / str(len(list(self._folder.iterdir())))
        folder.mkdir()
        recorder = Recorder(runner, folder)
        decoder, ar = self.subject.decoder(recorder), runner.ar
        runs = round(SIMULATED / (self.subject.elements * (1 + ar / 32)))
        if ar > 1:
            _read_held_out(decoder, self.subject.windows, min(GREEDY_POSITIONS, max(1, runs) * ar))
        else:
            _continue_greedily(decoder, self.subject.windows[0], runs)
        if not any(other.found for other in self._able):
            self._stack.enter_context(threads_left(self._at_once))
        count = max(1, recorder.count)
        shift = SHIFT if self._at_once > 1 else count
        for other, begin in product(self._able, range(0, count, shift)):
            recorded = recorder.recorded(slice(begin, begin + shift))
            other.found.setdefault(name, []).append(self._pool.submit(self._repeat, other, name, recorded))

    def _repeat(self, other: _Other, name: str, recorded: Recorded) -> Apart:
        """What the first has run on another runtime; nothing is run once the block is left."""
        comparison = Comparison()
        with ExitStack() as opened:
            (second,) = opened.enter_context(self.subject.open(other.runtime, name, other.bundle))
            self._opened.callback(opened.close)
            pair = PairedRunner(recorded, second, comparison)
            for inputs in recorded.given():
                if self._stop.is_set():
                    break
                pair.run(inputs)
        return comparison, dict(pair.noise)

    def checks(self) -> Iterator[Check]:
        """Step 4, once the other runtimes are done.

        Raises:
            BackendError: one failed.
        """
        for other in self._others:
            if other.lacking is not None:
                yield Check(4, f"{other.where} against {self.first}", f"not run: the bundle lacks {other.lacking}")
            for name, found in other.found.items():
                if not all(some.done() for some in found):
                    self.subject.progress("prove", f"{name} on {other.where}")
                comparison, tensors = _joined([some.result() for some in found])
                told = {"graph": name, "first": self.first, "second": other.where, "tensors": tensors}
                self.precision["runtimes"].append({**told, "parted": [*comparison.tied, *comparison.apart]})
                ar, cost = self.subject.bundle.graphs[name].ar, cost_of(self.subject)
                yield from _compared(f"{name} on {other.where} against {self.first}", comparison, ar, cost)


def _joined(found: Sequence[Apart]) -> tuple[Comparison, dict[str, float | None]]:
    """Some runs and others, tensor by tensor in dB."""
    noise = {tensor: sum((apart[tensor] for _, apart in found), Noise()) for tensor in found[0][1]}
    return sum((comparison for comparison, _ in found), Comparison()), {n: x.decibels for n, x in noise.items()}


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
    name = f"{where}, keys and values over 1 step of 8 bits off"
    yield Check(4, name, f"{off:.3%}", f"≤ {most:.1%}", off <= most, RANGES)
    agreement, near = GREEDY_AGREEMENT if ar > 1 else 1.0, [*found.tied, *found.near(NEAR * cost.rms)]
    same, count = found.same_token + len(near), found.positions
    ties = ""
    if near:
        shown = "; ".join(f"{a:.2f} and {b:.2f}" for a, b in near[:SHOWN])
        ties = f" ({len(near)} of them near-ties: {shown})"
    yield Check(
        4, f"{where}, same greedy token", f"{same} of {count}{ties}", f"≥ {agreement:.0%}", same >= agreement * count
    )
