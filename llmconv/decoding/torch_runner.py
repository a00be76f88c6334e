"""Graphs run in torch, as a host's runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from llmconv.decoding import decoder
from llmconv.decoding.decoder import Arrays
from llmconv.encodings.value import Encodings
from llmconv.graph.model import Graph, inputs_of, io_of, outputs_of, shape_of
from llmconv.graph.run import Observer, Program
from llmconv.weights.store import DictStore, WeightStore


class TorchRunner:
    """Runs a graph's parts in torch, as a `Runner`; the graph must not change meanwhile."""

    def __init__(
        self,
        graph: Graph,
        weights: WeightStore,
        encodings: Encodings | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.name, self.ar, self.context = graph.name, graph.ar, graph.context
        self._graph, self._given = graph, (weights, encodings, observer)
        self.inputs: dict[str, decoder.Tensor] = {}
        self.outputs: dict[str, decoder.Tensor] = {}
        for part in graph.parts:
            ins, outs = io_of(part)
            nodes = inputs_of(part) | outputs_of(part)
            for found, side in ((self.inputs, ins), (self.outputs, outs)):
                found |= {n: decoder.Tensor(io, shape_of(nodes[n])) for n, io in side.items() if io.kind != "hidden"}

    @cached_property
    def _programs(self) -> list[Program]:
        return [Program(part, *self._given) for part in self._graph.parts]

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run the parts in turn."""
        values = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        for program in self._programs:
            values |= program.run([values])[0]
        return {name: values[name].numpy() for name in self.outputs}


class HostInputs:
    """What a host gives a graph that reads a text at once, from its first token on, with an adapter or none."""

    def __init__(self, graph: Graph, adapter: str | None = None) -> None:
        self._host = TorchRunner(graph, DictStore({}))
        self._decoder = decoder.Decoder([self._host], graph.host_tables(), adapter=graph.adapter_table(adapter))
        self._ids = [name for name, tensor in self._host.inputs.items() if tensor.io.kind == "input_ids"]
        self._others: dict[str, torch.Tensor] = {}  # which are alike for all texts

    def of(self, tokens: Sequence[int]) -> dict[str, torch.Tensor]:
        """Tensors by I/O name."""
        given = self._decoder.inputs_for(self._host, tokens, self._ids if self._others else None)
        found = {name: torch.from_numpy(value) for name, value in given.items()}
        if not self._others:
            self._others = {name: value for name, value in found.items() if name not in self._ids}
        return self._others | found
