"""The one intermediate form: fx graphs of ATen ops at fixed shapes, with structural names and weights without data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from llmconv.encodings.value import Encodings
from llmconv.errors import PassError
from llmconv.graph.ops import weight_of
from llmconv.sources.model_config import ModelConfig
from llmconv.weights.store import WeightStore

aten = torch.ops.aten

Kind = Literal[
    "input_ids",
    "position_ids",
    "attention_mask",
    "rope_cos",
    "rope_sin",
    "local_rope_cos",
    "local_rope_sin",
    "past_key",
    "past_value",
    "new_key",
    "new_value",
    "lora",
    "hidden",
    "logits",
]

NAME = "llmconv_name"  # node.meta: the structural name
ROLE = "llmconv_role"  # node.meta: what the value is in the model, when a pass must find it
MADE_BY = "llmconv_made_by"  # node.meta: the pass that made the node
ROTARIES: dict[str, tuple[Kind, Kind]] = {  # submodules that give cos and sin -> the roles of these
    "rotary": ("rope_cos", "rope_sin"),
    "rotary_local": ("local_rope_cos", "local_rope_sin"),
}
IO_META = "llmconv_io"  # node.meta of placeholders (IO) and of the output node (dict of name -> IO)

_SHORT = {"scaled_dot_product_attention": "sdpa"}


@dataclass(frozen=True)
class IO:
    """What one input or output of a graph means to the host that runs it.

    Attributes:
        kind: the tensor's meaning; the host fills and reads it by this, never by its name.
        layer: the layer of a key or value, else None.
        head_axis: the axis that holds the KV heads, for keys and values.
        token_axis: the axis that holds cached positions, for keys and values.
    """

    kind: Kind
    layer: int | None = None
    head_axis: int | None = None
    token_axis: int | None = None


@dataclass
class Graph:
    """One graph of the recipe: `ar` tokens read in one run, `context` positions seen, as one or more parts.

    Attributes:
        rope: cos and sin by kind of input, each (context, channels that are turned / 2) float32, once they are inputs
            that the host fills.
        adapters: adapter -> what the host fills the inputs of kind "lora" with, by I/O name; zeros leave the model as
            it is.
    """

    name: str
    ar: int
    context: int
    parts: list[fx.GraphModule]
    rope: dict[Kind, torch.Tensor] = field(default_factory=dict)
    adapters: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def host_tables(self) -> dict[str, NDArray[np.float32]]:
        """What the host fills RoPE's inputs from, by their kind."""
        return {kind: table.numpy() for kind, table in self.rope.items()}

    def adapter_table(self, adapter: str | None) -> dict[str, NDArray[np.float32]]:
        """What the host fills the inputs of an adapter with; nothing for none."""
        return {} if adapter is None else {name: x.numpy() for name, x in self.adapters[adapter].items()}

    def label(self, part: int, count: int | None = None) -> str:
        """The graph's name inside a binary and on disk; Genie orders parts by it, GenieX reads its numbers.

        GenieX takes letters alone before `ar`, so that what follows them in the graph's name is left out; `ar` and
        `cl` tell a recipe's graphs apart.

        Args:
            part: counts from 0.
            count: of parts; those that the graph has by default.
        """
        role = re.split(r"[^A-Za-z]", self.name, maxsplit=1)[0] or self.name
        return f"{role}_ar{self.ar}_cl{self.context}_{part + 1}_of_{count or len(self.parts)}"


@dataclass
class Model:
    """What passes work on: every graph of a recipe, and the one set of weights that they share."""

    graphs: dict[str, Graph]
    weights: WeightStore
    config: ModelConfig | None
    encodings: Encodings | None = None


def name_of(node: fx.Node) -> str:
    """The structural name of a node, e.g. `layers.3.self_attn.q_proj.h5`."""
    return str(node.meta[NAME])


def value_of(node: fx.Node) -> torch.Tensor:
    """The value of a node, on the meta device: shape (static) and dtype."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        raise PassError(f"node '{node.meta.get(NAME, node.name)}' is not a tensor")
    return value


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The static shape of a node."""
    return tuple(value_of(node).shape)


def is_weight(node: fx.Node) -> bool:
    """Whether a node is a weight or computed from one weight alone (a head's rows, a reshape)."""
    return weight_of(node) is not None


def inputs_of(part: fx.GraphModule) -> dict[str, fx.Node]:
    """The inputs of a part by I/O name, in order."""
    return {str(n.target): n for n in part.graph.find_nodes(op="placeholder")}


def output_node(part: fx.GraphModule) -> fx.Node:
    """The node that returns the part's outputs as a dict of name -> node."""
    return part.graph.output_node()


def outputs_of(part: fx.GraphModule) -> dict[str, fx.Node]:
    """The outputs of a part by I/O name, in order."""
    return dict(output_node(part).args[0])  # type: ignore[arg-type]


def io_of(part: fx.GraphModule) -> tuple[dict[str, IO], dict[str, IO]]:
    """The meaning of each input and of each output of a part."""
    return {name: n.meta[IO_META] for name, n in inputs_of(part).items()}, dict(output_node(part).meta[IO_META])


def op_name(node: fx.Node) -> str:
    """The short name of a node's op: `linear`, `sdpa`, `mul`."""
    name = str(node.target).split(".")[-2] if isinstance(node.target, torch._ops.OpOverload) else node.name
    return _SHORT.get(name, name)
