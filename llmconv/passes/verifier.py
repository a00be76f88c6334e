"""What shows how far passes moved what a model's graphs compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, fx

from llmconv.decoding.decoder import Array, Decoder, Runner, reach
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.encodings.noise import Noise
from llmconv.encodings.value import Encodings
from llmconv.errors import CheckpointError, PassError
from llmconv.graph.model import Graph, name_of, value_of
from llmconv.weights.held import HeldStore
from llmconv.weights.store import WeightStore

RUNS = 16  # of a graph that reads a token at a time: each reads the cache that those before it have filled


def few(runner: Runner, count: int) -> int:
    """How many of `count` tokens a graph is compared on: what it can read by itself, in a few runs."""
    return min(reach(runner, count), RUNS * runner.ar)


class Verifier:
    """Compares graphs, whatever their inputs and weights have become, with what the source module computes.

    Args:
        source: the model traced at `len(tokens)` tokens, before any pass.
        weights: the checkpoint's, before any pass.
        tokens: what both read; at most the shortest context.

    Raises:
        CheckpointError: the source itself computes no numbers.
    """

    def __init__(self, source: Graph, weights: WeightStore, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self._held = HeldStore(weights)
        self.expected = Decoder([TorchRunner(source, HeldStore(weights, 0))], None).read(self.tokens)
        if np.isnan(self.expected).any():
            raise CheckpointError(
                f"the checkpoint's own logits are NaN before any pass{_not_finite(source, weights)}; "
                "is the download complete?"
            )

    def forget(self) -> None:
        """Let go of the weights that are held for the next graph."""
        self._held = HeldStore(self._held.store)

    def held(self, weights: WeightStore) -> HeldStore:
        """The weights of the graphs that are compared, held until others are asked for: those of a pass's new table."""
        if weights is not self._held.store:
            self._held = HeldStore(weights)
        return self._held

    def error(self, graph: Graph, weights: WeightStore) -> float | None:
        """The largest difference of a logit in float, as a share of the source's largest.

        None where the graph alone cannot read the tokens.

        Raises:
            PassError: a value is not of the shape and dtype that its node's `meta["val"]` says.
        """
        rows = self._rows(graph, weights, None)
        return None if rows is None else relative_error(*rows)

    def noise(self, graph: Graph, weights: WeightStore, encodings: Encodings) -> Noise | None:
        """What rounding the graph's values costs at the logits; None as of `error`."""
        rows = self._rows(graph, weights, encodings)
        return None if rows is None else Noise().add(*rows)

    def _rows(self, graph: Graph, weights: WeightStore, encodings: Encodings | None) -> tuple[Array, Array] | None:
        """Logits of the source and of the graph; only the last of each run where the graph gives no others."""
        runner = TorchRunner(graph, self.held(weights), encodings, _as_it_says)
        count = few(runner, len(self.tokens))
        if not count:
            return None
        found = Decoder([runner], graph.host_tables()).read(self.tokens[:count])
        every = slice(0, count) if len(found) == count else slice(graph.ar - 1, count, graph.ar)
        return self.expected[every], found


def _not_finite(source: Graph, weights: WeightStore) -> str:
    """Names the first weight that holds what is no number."""
    names = [str(n.target) for part in source.parts for n in part.graph.find_nodes(op="get_attr")]
    found = next((name for name in names if not bool(torch.isfinite(weights.read(name)).all())), None)
    return "" if found is None else f": tensor '{found}' is not finite"


def relative_error(expected: Array, found: Array) -> float:
    """The largest difference of a number, as a share of the largest expected: rounding grows with what is rounded."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _as_it_says(node: fx.Node, value: Tensor) -> None:
    said = value_of(node)
    if (value.shape, value.dtype) != (said.shape, said.dtype):
        raise PassError(
            f"'{name_of(node)}' runs as {tuple(value.shape)} {value.dtype}, "
            f"but its meta['val'] says {tuple(said.shape)} {said.dtype}"
        )
