"""The smallest modules and graphs that the core's tests work on; no model family among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from llmconv.graph import IO, IO_META, NAME, name_of, output_node, set_outputs

VOCABULARY, WIDTH, HEADS = 16, 8, 2


class Rotary(nn.Module):
    """Positions (1, T) to cos and sin (1, 1, T, D / 2)."""

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(WIDTH // HEADS // 2, dtype=torch.float32, device=position_ids.device)
        angles = position_ids[:, None, :, None].float() * 10.0**-exponents
        return angles.cos(), angles.sin()


class Mixer(nn.Module):
    """One causal attention with rotated keys and queries."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).split(WIDTH, -1))  # (1, H, T, D)
        q, k = (torch.cat([a * cos - b * sin, b * cos + a * sin], -1) for a, b in (q.chunk(2, -1), k.chunk(2, -1)))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (1, T, C)


class TinyCausal(nn.Module):
    """An embedding, attention in a residual, and a projection; about 500 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.rotary = Rotary()
        self.blocks = nn.ModuleList([Mixer()])
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        cos, sin = self.rotary(position_ids)
        for block in self.blocks:
            x = x + block(x, cos, sin)
        return self.head(x)  # (1, T, V)


def tiny_causal() -> TinyCausal:
    """The module on the meta device, as a source gives it."""
    with torch.device("meta"):
        return TinyCausal()


Body = Callable[[fx.Graph, dict[str, fx.Node]], Mapping[str, fx.Node]]


def build_part(
    body: Body,
    inputs: Mapping[str, Sequence[int]],
    weights: Mapping[str, Sequence[int]] | None = None,
    io: Mapping[str, IO] | None = None,
    ids: Mapping[str, Sequence[int]] | None = None,
) -> fx.GraphModule:
    """A part made by hand.

    Args:
        body: called with the graph and the nodes of inputs and weights by name; gives the outputs by name.
        inputs, weights, ids: name -> shape; float32, and int32 for ids.
        io: what inputs and outputs mean; hidden states by default.
    """
    io, ids, weights = io or {}, ids or {}, weights or {}
    shapes = {**inputs, **ids, **weights}
    root = nn.Module()
    for name, shape in weights.items():
        root.register_parameter(name, nn.Parameter(torch.empty(*shape, device="meta")))
    graph = fx.Graph()
    nodes = {name: graph.get_attr(name) if name in weights else graph.placeholder(name) for name in shapes}
    for name, node in nodes.items():
        dtype = torch.int32 if name in ids else torch.float32
        node.meta |= {NAME: name, "val": torch.empty(*shapes[name], dtype=dtype, device="meta")}
        if name not in weights:
            node.meta[IO_META] = io.get(name, IO("hidden"))
    outputs = body(graph, nodes)
    graph.output(dict(outputs))
    part = fx.GraphModule(root, graph)
    output_node(part).meta[NAME] = "output"
    set_outputs(part, outputs, {name: io.get(name, IO("hidden")) for name in outputs})
    return part


def listing(part: fx.GraphModule) -> list[tuple[Any, ...]]:
    """All that a graph is, but where its weights stand, strides of axes of length 1, and how its outputs are nested."""

    def named(arguments: Any) -> str:
        leaves = pytree.tree_leaves(fx.map_arg(arguments, lambda n: n.name if n.op == "call_function" else n.target))
        return str(leaves)

    nodes = [n for n in part.graph.nodes if n.op != "get_attr"]
    names = {n: n.op == "call_function" and name_of(n) for n in nodes}
    found = [(n.op, n.target, named(n.args), named(n.kwargs), _form(n), names[n]) for n in nodes]
    used = {str(n.target) for n in part.graph.nodes if n.op == "get_attr"}
    return [*found, *sorted((name, tuple(t.shape)) for name, t in part.state_dict().items() if name in used)]


def _form(node: fx.Node) -> Any:
    values = [v for v in pytree.tree_leaves(node.meta.get("val")) if v is not None]
    long = [[(size, stride) for size, stride in zip(v.shape, v.stride(), strict=True) if size > 1] for v in values]
    return [(form, tuple(v.shape), v.dtype, v.device) for form, v in zip(long, values, strict=True)]
