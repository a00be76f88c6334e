"""A graph run part by part on the integers that files and binaries have; the host has floats, and caches integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from llmconv.bundle.specs import GraphSpec, TensorSpec, dequantize, quantize
from llmconv.decoding.decoder import Arrays, Tensor
from llmconv.graph.model import IO

RunPart = Callable[[int, Arrays], Arrays]


class PartsRunner:
    """A graph run part by part on integers; keys and values stay integers, all else is float at its ends.

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
        """Quantize what is float, run the parts in turn, dequantize what the host does not cache."""
        values: Arrays = {}
        for i, part in enumerate(self.graph.parts):
            for spec in part.inputs:
                if spec.name not in values:
                    values[spec.name] = _as_taken(inputs[spec.name], spec)
            values |= self.run_part(i, {spec.name: values[spec.name] for spec in part.inputs})
        self.raw = values
        specs = {t.name: t for p in self.graph.parts for t in p.outputs}
        return {
            name: values[name] if tensor.encoding else dequantize(values[name], specs[name])
            for name, tensor in self.outputs.items()
        }


def _as_taken(value: NDArray[np.generic], spec: TensorSpec) -> NDArray[np.generic]:
    return value if spec.encoding is not None and value.dtype == spec.dtype else quantize(value, spec)


def _host_view(specs: Iterable[TensorSpec]) -> dict[str, Tensor]:
    return {spec.name: _tensor(spec) for spec in specs if spec.kind != "hidden"}


def _tensor(spec: TensorSpec) -> Tensor:
    cached = spec.kind in ("past_key", "past_value", "new_key", "new_value")
    encoding = spec.encoding if cached else None
    return Tensor(IO(spec.kind, spec.layer, spec.head_axis, spec.token_axis), spec.shape, encoding)  # type: ignore[arg-type]
