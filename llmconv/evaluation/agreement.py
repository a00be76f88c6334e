"""Two runtimes on the same inputs: how far apart their logits, keys, values and choices are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmconv.decoding.decoder import Array, Arrays, Runner
from llmconv.encodings import noise
from llmconv.evaluation.precision import TensorNoise
from llmconv.runtimes.parts_runner import PartsRunner


def sqnr(reference: Array, other: Array) -> float:
    """Signal over quantization noise, dB: 10 log10(sum of squares / sum of squared differences)."""
    return noise.sqnr(*noise.squares(reference, other))


@dataclass
class Comparison:
    """Sums over all runs.

    Attributes:
        positions: logit rows compared.
        same_token: rows in which both have the same largest logit.
        ties: rows in which they do not, but the first finds both within one step of the logits' encoding.
    """

    signal: float = 0.0
    noise: float = 0.0
    kv_off: int = 0
    kv_count: int = 0
    positions: int = 0
    same_token: int = 0
    ties: int = 0

    @property
    def sqnr(self) -> float:
        """Of the logits, dB."""
        return noise.sqnr(self.signal, self.noise)

    @property
    def kv_off_share(self) -> float:
        """The share of keys and values that are more than one step apart."""
        return self.kv_off / max(1, self.kv_count)

    def add_logits(self, a: Array, b: Array) -> None:
        """Compare rows of logits, (rows, vocabulary)."""
        signal, lost = noise.squares(a, b)
        self.signal, self.noise = self.signal + signal, self.noise + lost
        step = np.diff(np.unique(a)).min(initial=np.inf)
        for row_a, row_b in zip(a, b, strict=True):
            mine, theirs = int(row_a.argmax()), int(row_b.argmax())
            self.positions += 1
            self.same_token += mine == theirs
            self.ties += mine != theirs and row_a[mine] - row_a[theirs] <= 1.5 * step  # one step, in floats

    def add_kv(self, a: NDArray[np.generic], b: NDArray[np.generic]) -> None:
        """Compare integer keys or values."""
        self.kv_off += int((np.abs(a.astype(np.int32) - b.astype(np.int32)) > 1).sum())
        self.kv_count += a.size


class PairedRunner:
    """Runs two runners on the same inputs and gives the first's outputs; what differs goes into a `Comparison`.

    All rows are compared, so runs must not be padded. Runners with the parts' integers in `raw` are compared by those.
    """

    def __init__(self, first: Runner, second: Runner, comparison: Comparison) -> None:
        self.first, self.second, self.comparison = first, second, comparison
        self.name, self.ar, self.context = first.name, first.ar, first.context
        self.inputs, self.outputs = first.inputs, first.outputs
        parts = first.graph.parts if isinstance(first, PartsRunner) and isinstance(second, PartsRunner) else ()
        self.tensors = TensorNoise({t.name: t for part in parts for t in part.outputs})

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run both."""
        a, b = self.first.run(inputs), self.second.run(self._for_second(inputs))
        raw_a, raw_b = getattr(self.first, "raw", a), getattr(self.second, "raw", b)
        self.tensors.compare(raw_a, raw_b)
        for name, tensor in self.outputs.items():
            if tensor.io.kind == "logits":
                self.comparison.add_logits(np.asarray(a[name][0]), np.asarray(b[name][0]))
            elif tensor.io.kind in ("new_key", "new_value"):
                self.comparison.add_kv(raw_a[name], raw_b[name])
        return a

    def _for_second(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Floats where the first alone caches integers."""
        theirs = self.second.inputs
        return {n: x if theirs[n].encoding else self.inputs[n].floats(x) for n, x in inputs.items()}
