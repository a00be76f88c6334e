"""Two runtimes on the same inputs: how far apart their logits, keys, values and choices are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from llmconv.bundle.specs import PartSpec
from llmconv.decoding.decoder import Array, Arrays, Runner
from llmconv.encodings.noise import Noise
from llmconv.runtimes.parts_runner import PartsRunner


@dataclass
class Comparison:
    """Sums over all runs.

    Attributes:
        logits: the second's noise over the first's signal.
        positions: logit rows compared.
        same_token: rows in which both have the same largest logit.
        tied: the two logits that the first finds for both choices, of rows in which they do not, but are within one
            step of the logits' encoding.
        apart: likewise, of the other rows that differ.
        values: logits compared.
    """

    logits: Noise = field(default_factory=Noise)
    kv_off: int = 0
    kv_count: int = 0
    positions: int = 0
    same_token: int = 0
    tied: list[tuple[float, float]] = field(default_factory=list)
    apart: list[tuple[float, float]] = field(default_factory=list)
    values: int = 0

    def __add__(self, other: Comparison) -> Comparison:
        """Of the runs of both, in this order."""
        return Comparison(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def rms(self) -> float:
        """The root mean square of what the logits differ by."""
        return float(np.sqrt(self.logits.noise / max(1, self.values)))

    def near(self, gap: float) -> list[tuple[float, float]]:
        """Of `apart`, those whose two logits are no further from each other."""
        return [(a, b) for a, b in self.apart if a - b <= gap]

    @property
    def kv_off_share(self) -> float:
        """The share of keys and values that are more than one step of 8 bits apart."""
        return self.kv_off / max(1, self.kv_count)

    def add_logits(self, a: Array, b: Array, step: float = 0.0) -> None:
        """Compare rows of logits, (rows, vocabulary).

        Args:
            step: the scale of their encoding; without one, only equal logits tie.
        """
        self.logits.add(a, b)
        rows, mine, theirs = np.arange(len(a)), a.argmax(axis=1), b.argmax(axis=1)
        close = a[rows, mine] - a[rows, theirs] <= 1.5 * step  # one step, in floats
        self.positions += len(a)
        self.same_token += int((mine == theirs).sum())
        self.values += a.size
        for i in rows[mine != theirs]:
            (self.tied if close[i] else self.apart).append((float(a[i, mine[i]]), float(a[i, theirs[i]])))

    def add_kv(self, a: NDArray[np.generic], b: NDArray[np.generic]) -> None:
        """Compare integer keys or values.

        Those of 16 bits in the steps that 8 bits have: the ops before them are as exact as that, not as their own step.
        """
        step = 1 << 8 if a.dtype.itemsize == np.dtype(np.int16).itemsize else 1
        self.kv_off += int((np.abs(a.astype(np.int32) - b.astype(np.int32)) > step).sum())
        self.kv_count += a.size


class PairedRunner:
    """Runs two runners on the same inputs and gives the first's outputs; what differs goes into a `Comparison`.

    All rows are compared, so runs must not be padded. Runners with the parts' integers in `raw` are compared by those.

    Attributes:
        noise: of each output of each part, of two runners of parts.
    """

    def __init__(self, first: Runner, second: Runner, comparison: Comparison) -> None:
        self.first, self.second, self.comparison = first, second, comparison
        self.name, self.ar, self.context = first.name, first.ar, first.context
        self.inputs, self.outputs = first.inputs, first.outputs
        parts = _parts(first) if isinstance(second, PartsRunner) else ()
        self.specs = {t.name: t for part in parts for t in part.outputs}
        self.noise: defaultdict[str, Noise] = defaultdict(Noise)

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run both."""
        a, b = self.first.run(inputs), self.second.run(self._for_second(inputs))
        raw_a, raw_b = getattr(self.first, "raw", a), getattr(self.second, "raw", b)
        for name, spec in self.specs.items():  # about the zero point: scales cancel
            self.noise[name].add(raw_a[name], raw_b[name], spec.encoding.zero_point if spec.encoding is not None else 0)
        for name, tensor in self.outputs.items():
            if tensor.io.kind == "logits":
                self.comparison.add_logits(np.asarray(a[name][0]), np.asarray(b[name][0]), self._step(name))
            elif tensor.io.kind in ("new_key", "new_value"):
                self.comparison.add_kv(raw_a[name], raw_b[name])
        return a

    def _for_second(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Floats where the first alone caches integers."""
        theirs = self.second.inputs
        return {n: x if theirs[n].encoding else self.inputs[n].floats(x) for n, x in inputs.items()}

    def _step(self, name: str) -> float:
        spec = self.specs.get(name)
        return spec.encoding.scale if spec is not None and spec.encoding is not None else 0.0


GIVEN, FOUND, RAW = "given.", "found.", "raw."  # before names in the file of a run


class Recorder:
    """Runs a runner and keeps each run in a folder, so that others can be compared with it when it is gone.

    Attributes:
        count: of runs that are kept.
    """

    def __init__(self, runner: Runner, folder: Path) -> None:
        self.runner, self.folder, self.count = runner, folder, 0
        self.name, self.ar, self.context = runner.name, runner.ar, runner.context
        self.inputs, self.outputs, self.parts = runner.inputs, runner.outputs, _parts(runner)

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run it."""
        found = self.runner.run(inputs)
        kept = {GIVEN + name: value for name, value in inputs.items()}
        kept |= {FOUND + name: value for name, value in found.items()}
        raw = getattr(self.runner, "raw", found)
        names = {t.name for part in self.parts for t in part.outputs} or found
        kept |= {RAW + name: raw[name] for name in names}
        save_file({name: np.asarray(value, order="C") for name, value in kept.items()}, _file(self.folder, self.count))
        self.count += 1
        return found

    def recorded(self, runs: slice = slice(None)) -> Recorded:
        """What it has run, or some of that, without it."""
        return Recorded(self, range(self.count)[runs])


class Recorded:
    """Gives what a runner has given, run by run, in its place.

    Args:
        runs: of all that are kept, those to give.

    Attributes:
        raw: the parts' integers of the last run, where the runner had them.
    """

    def __init__(self, recorder: Recorder, runs: range) -> None:
        self.folder, self.runs, self._left = recorder.folder, runs, iter(runs)
        self.name, self.ar, self.context = recorder.name, recorder.ar, recorder.context
        self.inputs, self.outputs, self.parts = recorder.inputs, recorder.outputs, recorder.parts
        self.raw: Arrays = {}

    def given(self) -> Iterator[Arrays]:
        """What each run was given."""
        for i in self.runs:
            yield self._read(i, GIVEN)

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """What the next run gave."""
        number = next(self._left)
        self.raw = self._read(number, RAW)
        return self._read(number, FOUND)

    def _read(self, number: int, kind: str) -> Arrays:
        with safe_open(_file(self.folder, number), "numpy") as file:
            return {n.removeprefix(kind): file.get_tensor(n) for n in file.keys() if n.startswith(kind)}  # noqa: SIM118  no dict


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.safetensors"


def _parts(runner: Runner) -> Sequence[PartSpec]:
    """The parts of a runner that knows their integers."""
    if isinstance(runner, Recorder | Recorded):
        return runner.parts
    return runner.graph.parts if isinstance(runner, PartsRunner) else ()
