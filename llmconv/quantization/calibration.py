"""Ranges of values over calibration text, and the groups of values that must share one encoding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import fx

from llmconv.decoding.decoder import Decoder
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.errors import PassError
from llmconv.graph.model import Graph, aten, io_of, is_weight, name_of
from llmconv.graph.run import Program
from llmconv.weights.store import DictStore, WeightStore

CALIBRATION = "calibration"  # the graph without past, as long as a sample, that passes see beside the recipe's own

# Ops whose result holds their inputs' numbers, unchanged.
MOVEMENT = {
    aten.alias.default,
    aten.cat.default,
    aten.expand.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.reshape.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
}

Range = tuple[float, float]


class Calibration:
    """Samples on their way through the parts of a graph, which all of them pass before the next part begins.

    Args:
        graph: one without past, `ar` = `context` = length of a sample.
        samples: token ids; each starts with BOS, whose massive activations must be in range.

    Attributes:
        values: for each sample, the inputs of the parts to come.
    """

    def __init__(self, graph: Graph, samples: Sequence[Sequence[int]]) -> None:
        runner = TorchRunner(graph, DictStore({}))
        decoder = Decoder([runner], graph.rope and (graph.rope[0].numpy(), graph.rope[1].numpy()))
        given = [decoder.inputs_for(runner, sample) for sample in samples]
        self.values = [{name: torch.from_numpy(x) for name, x in inputs.items()} for inputs in given]

    def run(self, part: fx.GraphModule, weights: WeightStore) -> dict[str, Range]:
        """The smallest and largest number of every float value of the next part; reads each weight once.

        Raises:
            PassError: a value is not finite.
        """
        ranges: dict[str, Range] = {}

        def observe(node: fx.Node, value: torch.Tensor) -> None:
            low, high = (float(x) for x in torch.aminmax(value))
            if not math.isfinite(high - low):
                raise PassError(
                    f"value '{name_of(node)}' is not finite on calibration text; is the checkpoint damaged?"
                )
            old = ranges.get(name_of(node), (low, high))
            ranges[name_of(node)] = (min(low, old[0]), max(high, old[1]))

        borders = _borders(part)
        results = Program(part, weights, observer=observe).run(self.values)
        for sample, outputs in zip(self.values, results, strict=True):
            sample |= {name: outputs[name].contiguous() for name in borders}  # as a file would give it back
        return ranges

    def border(self, part: fx.GraphModule) -> dict[str, torch.Tensor]:
        """What a part that has run gives to the next, all samples in one tensor each: (samples, *shape)."""
        return {name: torch.stack([sample[name] for sample in self.values]) for name in _borders(part)}

    def skip(self, border: Mapping[str, torch.Tensor]) -> None:
        """Go on after a part whose `border` is known from an earlier run."""
        for i, sample in enumerate(self.values):
            sample |= {name: value[i] for name, value in border.items()}


def _borders(part: fx.GraphModule) -> list[str]:
    return [name for name, io in io_of(part)[1].items() if io.kind == "hidden"]


def collect_ranges(graph: Graph, weights: WeightStore, samples: Sequence[Sequence[int]]) -> dict[str, Range]:
    """The smallest and largest number of every float value of a graph over all samples, as `Calibration` finds them."""
    calibration = Calibration(graph, samples)
    return {name: found for part in graph.parts for name, found in calibration.run(part, weights).items()}


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
