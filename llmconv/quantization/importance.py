"""How much each channel of what linears read matters: its share of the squares of a token, on calibration text."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, fx

from llmconv.graph.model import Model, name_of
from llmconv.passes.context import PassContext
from llmconv.quantization.calibration import CALIBRATION, Calibration
from llmconv.quantization.linears import LinearInput, linear_inputs
from llmconv.quantization.streaming import Keeping

_TINY = torch.finfo(torch.float64).tiny


def channel_shares(model: Model, context: PassContext) -> dict[str, Tensor]:
    """Of each value that a weight is multiplied with, by structural name: (channels,) float32, their mean 1.

    A channel's square over the mean of its token's, averaged over tokens: each token counts alike, also beside the
    first, which in many models is a thousand times as large as the others. Weights are float.

    The samples pass through the calibration graph piece by piece, so that memory does not grow with them.
    """
    graph, found = model.graphs[CALIBRATION], _Sums()
    scratch: Path | None = None if context.steps is None else context.steps.folder
    with TemporaryDirectory(dir=scratch) as folder:
        calibration = Calibration(graph, context.samples, Path(folder))
        for part in graph.parts:
            found.read = {read.value: read for read in linear_inputs(part).values()}
            calibration.run(part, Keeping(model.weights, {}), found.observe)
    tokens = graph.ar * len(context.samples)
    return {name: (total / tokens).float() for name, total in found.totals.items()}


class _Sums:
    def __init__(self) -> None:
        self.read: dict[str, LinearInput] = {}
        self.totals: dict[str, Tensor] = {}

    def observe(self, node: fx.Node, value: Tensor) -> None:
        name = name_of(node)
        if (read := self.read.get(name)) is not None:
            squares = read.tokens(value).double().square()
            shares = (squares / squares.mean(dim=1, keepdim=True).clamp_min(_TINY)).sum(dim=0)
            self.totals[name] = self.totals.get(name, torch.zeros_like(shares)) + shares
