"""What passes over weights look at before anything is quantized: values of the float model on calibration text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from llmconv.graph.model import Model, name_of
from llmconv.graph.run import Observer
from llmconv.graph.signature import signature
from llmconv.passes.context import PassContext
from llmconv.quantization.calibration import CALIBRATION, Calibration
from llmconv.quantization.linears import LinearInput, linear_inputs
from llmconv.quantization.streaming import Keeping
from llmconv.weights.derived import tables_of
from llmconv.work.tensors import tensors_once

_TINY = torch.finfo(torch.float64).tiny


def chosen_on_samples(
    model: Model,
    context: PassContext,
    name: str,
    work: Callable[[], Mapping[str, Tensor]],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """What a pass chooses on calibration text, by names of its own; empty where there is no text.

    A bundle keeps it, so that it is at hand where the passes run once more without the text; an earlier run of the same
    conversion may have made it as well.

    Args:
        name: of the pass.
        work: chooses, by the calibration graph alone.
        options: of the pass, on which it depends.
    """
    known = {key.removeprefix(f"{name}."): x for key, x in context.chosen.items() if key.startswith(f"{name}.")}
    if known or CALIBRATION not in model.graphs or not context.samples:
        return known
    if context.steps is None:
        found = dict(work())
    else:
        graph = signature(model.graphs[CALIBRATION])
        key = context.steps.key(
            graphs=graph, samples=context.samples, options=dict(options), tables=tables_of(model.weights)
        )
        found = tensors_once(context.steps, name, key, work)
    context.chosen.update({f"{name}.{key}": x for key, x in found.items()})
    return found


def observe_samples(
    model: Model, context: PassContext, observer: Observer, names: Collection[str] | None = None
) -> None:
    """Show every float value of every sample, as the float model computes it.

    The samples pass through the calibration graph piece by piece, so that memory does not grow with them.

    Args:
        names: the values that the observer looks at, by structural name, where it does not look at all: what comes
            after the last of them, such as the product with lm_head, is not computed.
    """
    graph = model.graphs[CALIBRATION]
    with context.scratch() as folder:
        calibration = Calibration(graph, context.samples, folder)
        for part in graph.parts:
            calibration.run(part, Keeping(model.weights, {}), observer, names)


def channel_shares(model: Model, context: PassContext) -> dict[str, Tensor]:
    """Of each value that a weight is multiplied with, by structural name: (channels,) float32, their mean 1.

    A channel's square over the mean of its token's, averaged over tokens: each token counts alike, also beside the
    first, which in many models is a thousand times as large as the others.
    """
    graph, found = model.graphs[CALIBRATION], _Shares()
    for part in graph.parts:
        found.read |= {read.value: read for read in linear_inputs(part).values()}
    observe_samples(model, context, found.observe, found.read)
    tokens = graph.ar * len(context.samples)
    return {name: (total / tokens).float() for name, total in found.totals.items()}


class _Shares:
    def __init__(self) -> None:
        self.read: dict[str, LinearInput] = {}
        self.totals: dict[str, Tensor] = {}

    def observe(self, node: fx.Node, value: Tensor) -> None:
        name = name_of(node)
        if (read := self.read.get(name)) is not None:
            squares = read.tokens(value).double().square()
            shares = (squares / squares.mean(dim=1, keepdim=True).clamp_min(_TINY)).sum(dim=0)
            self.totals[name] = self.totals.get(name, torch.zeros_like(shares)) + shares
