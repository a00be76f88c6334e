"""Split every graph into parts at residual boundaries that the graph itself shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from llmconv import PassError
from llmconv.graph import (
    Model,
    ancestors_of,
    aten,
    balance,
    inputs_of,
    io_of,
    name_of,
    nodes_between,
    outputs_of,
    part_of,
    split_graph,
    weight_bytes,
)
from llmconv.passes import PassContext, SplitPass
from llmconv.sources import ModelConfig


@dataclass(frozen=True)
class SplitModel(SplitPass):
    """Cut between layers, where one residual value carries all that comes after.

    Given:  graphs of one part each
    Result: graphs of `parts` parts; the value at cut i is output and input `hidden_state_<i>`; part i of every
            graph holds the same layers.
    Not applied: one part.
    Source: one HTP process domain holds 3.5 to 4 GB.

    Attributes:
        parts: how many, balanced by the bytes that weights will take: an embedding table of 16 bits outweighs two
            layers of 4.
        layers: how many layers each part holds, instead of balancing; their sum is the layer count.
    """

    name: ClassVar[str] = "split_model"
    needs: ClassVar[tuple[str, ...]] = ("kv_cache_io",)
    runs_after: ClassVar[tuple[str, ...]] = ("split_heads", "linear_to_conv")
    splits: ClassVar[str | None] = "parts"
    by_place: ClassVar[tuple[str, ...] | None] = ()

    parts: int = 1
    layers: tuple[int, ...] | None = None

    def check(self, config: ModelConfig) -> None:
        """The parts fit the layers."""
        self._check(config.layers)

    def run(self, model: Model, context: PassContext) -> bool:
        """Find the cuts in one graph and make them in all, by structural name."""
        first = next(iter(model.graphs.values()))
        if any(len(graph.parts) != 1 for graph in model.graphs.values()):
            raise PassError("the graphs are split already; list the pass once")
        boundaries = _layer_boundaries(first.parts[0])
        cuts = self._choose(context, first.parts[0], boundaries)
        for graph in model.graphs.values() if cuts else ():
            split_graph(graph, cuts)
        return bool(cuts)

    def lengths(self, layer_bytes: Sequence[int]) -> Sequence[int]:
        """As the recipe says, or balanced."""
        return self.layers or balance(layer_bytes, self.parts)

    def layer_by_layer(self, layers: int) -> SplitModel:
        """With as many parts as layers."""
        return replace(self, parts=1, layers=(1,) * layers)

    def _check(self, layers: int) -> None:
        if self.layers is None and not 1 <= self.parts <= layers:
            raise PassError(f"split_model.parts = {self.parts}, but the model has {layers} layers; use 1 to {layers}")
        if self.layers is None:
            return
        sizes = list(self.layers)
        if sum(sizes) != layers or min(sizes) < 1:
            raise PassError(f"split_model.layers = {sizes} must be positive and add up to {layers}, the model's layers")
        if self.parts not in (1, len(sizes)):
            raise PassError(f"split_model.layers = {sizes} are {len(sizes)} parts, but parts = {self.parts}; set one")

    def _choose(self, context: PassContext, part: fx.GraphModule, boundaries: list[fx.Node]) -> list[str]:
        self._check(len(boundaries) + 1)
        sizes = self.lengths(_layer_bytes(part, boundaries, context.widths()))
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        return [name_of(boundaries[end - 1]) for end in ends]


def _layer_boundaries(part: fx.GraphModule) -> list[fx.Node]:
    """The residual sums after which another layer's attention follows, in order.

    A boundary is a value that every later value of the main path depends on alone: nothing else computed from the
    ids before it is used after it. Keys and values leave by the side.
    """
    ids, mask = _input(part, "input_ids"), _input(part, "attention_mask")
    outputs, io = outputs_of(part), io_of(part)[1]
    logits = next(node for name, node in outputs.items() if io[name].kind == "logits")
    to_logits = ancestors_of([logits])
    main = [n for n in nodes_between([ids], part) if n in to_logits]
    position = {n: i for i, n in enumerate(main)}
    attends = [i for i, n in enumerate(main) if mask in n.all_input_nodes]
    cuts, reach = [], -1
    for i, node in enumerate(main):
        if reach <= i and node.target is aten.add.Tensor:
            cuts.append(i)
        reach = max([reach, *(position[u] for u in node.users if u in position)])
    ends = [*cuts[1:], len(main)]
    return [main[c] for c, end in zip(cuts, ends, strict=True) if any(c < a < end for a in attends)]


def _input(part: fx.GraphModule, kind: str) -> fx.Node:
    nodes, io = inputs_of(part), io_of(part)[0]
    for name, node in nodes.items():
        if io[name].kind == kind:
            return node
    raise PassError(f"the graph has no input of kind {kind}; put kv_cache_io before split_model")


def _layer_bytes(part: fx.GraphModule, boundaries: list[fx.Node], widths: Mapping[str, float]) -> list[int]:
    """Bytes of the weights that each layer uses; the embedding counts to the first, lm_head to the last."""
    owner = part_of(part, [name_of(b) for b in boundaries])
    totals = [0] * (len(boundaries) + 1)
    for node in part.graph.nodes:
        if node.op == "get_attr":
            totals[min(_first_user(node, owner), len(boundaries))] += weight_bytes(node, widths)
    return totals


def _first_user(node: fx.Node, owner: dict[fx.Node, int]) -> int:
    """The part of the first node that computes with a weight, through slices and reshapes of it."""
    found = [owner[u] if u in owner else _first_user(u, owner) for u in node.users if u.op != "output"]
    return min(found, default=0)
