"""A graph run part by part on the integers that files and binaries have, floats at its ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from llmconv.bundle.specs import GraphSpec, dequantize, quantize
from llmconv.decoding.decoder import Arrays, Tensor
from llmconv.graph.model import IO

RunPart = Callable[[int, Arrays], Arrays]


class PartsRunner:
    """A graph run part by part on integers, floats at its ends.

    Args:
        run_part: runs one part, counted from 0, on the tensors that files and binaries have.
    """

    def __init__(self, graph: GraphSpec, run_part: RunPart) -> None:
        self.name, self.ar, self.context = graph.name, graph.ar, graph.context
        self.graph, self.run_part = graph, run_part
        self.inputs = _host_view(t for p in graph.parts for t in p.inputs)
        self.outputs = _host_view(t for p in graph.parts for t in p.outputs)
        self.raw: Arrays = {}  # the integers of the last run, hidden states among them

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Quantize, run the parts in turn, dequantize."""
        values: Arrays = {}
        for i, part in enumerate(self.graph.parts):
            for spec in part.inputs:
                if spec.name not in values:
                    values[spec.name] = quantize(inputs[spec.name], spec)
            values |= self.run_part(i, {spec.name: values[spec.name] for spec in part.inputs})
        self.raw = values
        specs = {t.name: t for p in self.graph.parts for t in p.outputs}
        return {name: dequantize(values[name], specs[name]) for name in self.outputs}


def _host_view(specs: object) -> dict[str, Tensor]:
    found = {}
    for spec in specs:  # type: ignore[attr-defined]
        if spec.kind != "hidden":
            found[spec.name] = Tensor(IO(spec.kind, spec.layer, spec.head_axis, spec.token_axis), spec.shape)
    return found
