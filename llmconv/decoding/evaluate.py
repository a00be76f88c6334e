"""Run a part on real numbers: each weight is read at its first use and dropped after its last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from llmconv.checkpoint.weights import WeightStore
from llmconv.decoding.decoder import Arrays, Tensor
from llmconv.graph.encodings import Encodings
from llmconv.graph.model import Graph, inputs_of, io_of, name_of, outputs_of, shape_of

Observer = Callable[[fx.Node, torch.Tensor], None]


class _Evaluator(fx.Interpreter):
    def __init__(
        self, part: fx.GraphModule, weights: WeightStore, encodings: Encodings | None, observer: Observer | None
    ) -> None:
        super().__init__(part, garbage_collect_values=True)
        self.weights, self.encodings, self.observer = weights, encodings, observer

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            return self.weights.read(str(n.target))
        result = super().run_node(n)
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            if self.observer is not None:
                self.observer(n, result)
            if self.encodings is not None and (encoding := self.encodings.values.get(name_of(n))) is not None:
                result = encoding.fake_quantize(result)
        return result


def evaluate(
    part: fx.GraphModule,
    inputs: Mapping[str, torch.Tensor],
    weights: WeightStore,
    encodings: Encodings | None = None,
    observer: Observer | None = None,
) -> dict[str, torch.Tensor]:
    """Run one part.

    Args:
        inputs: tensors by I/O name; float32, or int32 for ids.
        encodings: when given, every value with an encoding is quantized and dequantized where it is made.
        observer: called with each floating-point value before it is quantized.

    Returns:
        The outputs by I/O name.
    """
    evaluator = _Evaluator(part, weights, encodings, observer)
    with torch.no_grad():
        result = evaluator.run(*(inputs[str(n.target)] for n in part.graph.nodes if n.op == "placeholder"))
    return {name: result[name] for name in outputs_of(part)}


class TorchRunner:
    """Runs a graph's parts in torch, as a `Runner`."""

    def __init__(
        self,
        graph: Graph,
        weights: WeightStore,
        encodings: Encodings | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.name, self.ar, self.context = graph.name, graph.ar, graph.context
        self.graph, self.weights, self.encodings, self.observer = graph, weights, encodings, observer
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        for part in graph.parts:
            ins, outs = io_of(part)
            nodes = inputs_of(part) | outputs_of(part)
            shapes = {name: tuple(shape_of(nodes[name])) for name in [*ins, *outs]}
            self.inputs |= {n: Tensor(io, shapes[n]) for n, io in ins.items() if io.kind != "hidden"}
            self.outputs |= {n: Tensor(io, shapes[n]) for n, io in outs.items() if io.kind != "hidden"}

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run the parts in turn."""
        values = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        for part in self.graph.parts:
            values |= evaluate(part, values, self.weights, self.encodings, self.observer)
        return {name: values[name].numpy() for name in self.outputs}
