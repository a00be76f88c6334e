"""Ranges of values over calibration text, and the groups of values that must share one encoding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx

from llmconv.decoding.decoder import Decoder
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.errors import PassError
from llmconv.graph.model import Graph, aten, inputs_of, io_of, is_weight, name_of, outputs_of
from llmconv.graph.ops import MOVEMENT, weight_of
from llmconv.graph.run import Program
from llmconv.quantization.stored_values import StoredValues
from llmconv.weights.store import DictStore, WeightStore

CALIBRATION = "calibration"  # the graph without past, as long as a sample, that passes see beside the recipe's own

BATCH_TOKENS = 1024  # that run at once: their values are all that memory holds of the samples

Range = tuple[float, float]


class Calibration:
    """Samples on their way through the parts of a graph, which all of them pass before the next part begins.

    A part is run in segments, each over the samples in batches; between segments the samples' values lie on disk.
    So memory holds one segment's weights and one batch's values, however many samples there are.

    Args:
        graph: one without past, `ar` = `context` = length of a sample.
        samples: token ids; each starts with BOS, whose massive activations must be in range.
        folder: for the values; an empty one.
    """

    def __init__(self, graph: Graph, samples: Sequence[Sequence[int]], folder: Path) -> None:
        self._host = TorchRunner(graph, DictStore({}))
        self._decoder = Decoder([self._host], graph.rope and (graph.rope[0].numpy(), graph.rope[1].numpy()))
        self._samples, self._stored = samples, StoredValues(folder, len(samples))
        size = max(1, BATCH_TOKENS // graph.ar)
        self._batches = [range(i, min(i + size, len(samples))) for i in range(0, len(samples), size)]

    def run(self, part: fx.GraphModule, pieces: Sequence[fx.GraphModule], weights: WeightStore) -> dict[str, Range]:
        """The smallest and largest number of every float value of the next part.

        An embedding's are those of its whole table: any row may be looked up.

        Args:
            pieces: the segments of the part.
            weights: each is read once a segment.

        Raises:
            PassError: a value is not finite.
        """
        ranges = _Ranges()
        hidden = _hidden(part)
        for i, piece in enumerate(pieces):
            held = _Held(weights, ranges, _tables(piece))
            program = Program(piece, held, observer=ranges.observe)
            for batch in self._batches:
                held.keep = batch != self._batches[-1]
                for outputs in program.run([self._inputs(piece, sample) for sample in batch]):
                    self._stored.add(outputs)
            later = {name for following in pieces[i + 1 :] for name in inputs_of(following)}
            self._stored.finish(later | set(hidden.values()))
        for name, value in hidden.items():
            self._stored.move(value, name)
        return ranges

    def keep(self, part: fx.GraphModule, paths: Sequence[Path]) -> None:
        """Move what a part that has run gives to the next, in the order of its outputs, out of the folder."""
        for name, path in zip(_hidden(part), paths, strict=True):
            self._stored.move(name, name, path)

    def skip(self, part: fx.GraphModule, paths: Sequence[Path]) -> None:
        """Go on after a part that an earlier run has kept so."""
        for name, path in zip(_hidden(part), paths, strict=True):
            self._stored.open(name, path)

    def _inputs(self, piece: fx.GraphModule, sample: int) -> dict[str, torch.Tensor]:
        given = self._decoder.inputs_for(self._host, self._samples[sample])
        return {
            name: torch.from_numpy(given[name]) if name in given else self._stored.read(name, sample)
            for name in inputs_of(piece)
        }


class _Ranges(dict[str, Range]):
    """The smallest and largest number of each value so far."""

    def observe(self, node: fx.Node, value: torch.Tensor) -> None:
        self.add(name_of(node), value)

    def add(self, name: str, value: torch.Tensor) -> None:
        low, high = (float(x) for x in torch.aminmax(value))
        if not math.isfinite(high - low):
            raise PassError(f"value '{name}' is not finite on calibration text; is the checkpoint damaged?")
        old = self.get(name, (low, high))
        self[name] = (min(low, old[0]), max(high, old[1]))


@dataclass
class _Held:
    """A segment's weights: each read once, and held while batches are to come.

    Attributes:
        tables: embedding table -> the value that is looked up in it.
        keep: whether a batch is to come after the one that runs.
    """

    store: WeightStore
    ranges: _Ranges
    tables: Mapping[str, str]
    keep: bool = False
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.store.shape(name)

    def sha256(self, name: str) -> str | None:
        return self.store.sha256(name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        weight = self.weights.pop(name, None)
        if weight is None:
            weight = self.store.read(name, rows)
            if name in self.tables:
                self.ranges.add(self.tables[name], weight)
        if self.keep:
            self.weights[name] = weight
        return weight


def _tables(piece: fx.GraphModule) -> dict[str, str]:
    lookups = [n for n in piece.graph.nodes if n.target is aten.embedding.default]
    weights = {n: weight_of(n.args[0]) for n in lookups}
    return {str(weight.target): name_of(n) for n, weight in weights.items() if weight is not None}


def _hidden(part: fx.GraphModule) -> dict[str, str]:
    """What a part gives to the next: the structural names of its hidden states, by I/O name."""
    io = io_of(part)[1]
    return {name: name_of(node) for name, node in outputs_of(part).items() if io[name].kind == "hidden"}


def sharing_groups(graphs: Iterable[Graph]) -> list[list[str]]:
    """Names of values that one encoding must cover: those connected by data movement in any of the graphs."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for graph in graphs:
        for part in graph.parts:
            for node in part.graph.nodes:
                if not _is_float(node) or is_weight(node):
                    continue
                find(name_of(node))
                if node.target in MOVEMENT:
                    for source in node.all_input_nodes:
                        parent[find(name_of(source))] = find(name_of(node))
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(find(name), []).append(name)
    return list(groups.values())


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return node.op != "output" and isinstance(value, torch.Tensor) and value.is_floating_point()
