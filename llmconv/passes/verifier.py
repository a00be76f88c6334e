"""What shows that a pass left what its graphs compute as it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmconv.decoding.decoder import Decoder, reach
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.graph.model import Graph
from llmconv.weights.store import WeightStore


class Verifier:
    """Compares graphs, whatever their inputs have become, with what the source module computes.

    Args:
        source: the model traced at `len(tokens)` tokens, before any pass.
        tokens: what both read; at most the shortest context.
    """

    def __init__(self, source: Graph, weights: WeightStore, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.expected = Decoder([TorchRunner(source, weights)], None).read(self.tokens)

    def error(self, graph: Graph, weights: WeightStore) -> float | None:
        """The largest difference of a logit, reading the tokens through this graph alone; None where it needs more."""
        runner = TorchRunner(graph, weights)
        rope = graph.rope and (graph.rope[0].numpy(), graph.rope[1].numpy())
        count = reach(runner, len(self.tokens))
        if not count:
            return None
        logits = Decoder([runner], rope).read(self.tokens[:count])
        return float(np.abs(logits - self._rows(graph, count, len(logits))).max())

    def _rows(self, graph: Graph, count: int, found: int) -> NDArray[np.float32]:
        """The source's rows; only the last of each run where the graph gives no others."""
        return self.expected[:count] if found == count else self.expected[graph.ar - 1 : count : graph.ar]
