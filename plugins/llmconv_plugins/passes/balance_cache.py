"""Have keys and values fill the range of their cache: factors in the weights that queries and o_proj undo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from llmconv.graph import ATTENTION, REARRANGEMENT, Model, aten, name_of, shape_of
from llmconv.passes import PassContext
from llmconv.quantization import observe_samples
from llmconv_plugins.passes.channels import around, weights_of
from llmconv_plugins.passes.scaling import Ends, ScalingPass, read_by_heads

LEAST = 1e-3  # of the largest channel: one that never says anything is not blown up


@dataclass(frozen=True)
class BalanceCache(ScalingPass):
    """Divide the keys' channels and the values' heads by how large they become, and multiply what reads them.

    Given:  attention(rope(q_proj(x)), rope(k_proj(x)), v_proj(x)), o_proj behind it; a cache has one scale
    Result: the same graphs over other weights: k_proj's rows over s, q_proj's times s, one s for each pair of channels
            that RoPE turns; v_proj's rows over t, o_proj's columns times t, one t a head. On calibration text every
            pair of the keys and every head of the values then reaches as far as any other, so that 8 bits serve all of
            them alike. No op is added.
    Not applied: to keys with anything but RoPE by halves behind them, as a norm; to weights that are used twice; where
            there is no calibration text, as when sizes alone are laid out.
    Source: keys have outlier channels (KIVI, Liu et al., 2024); pairs may have factors, since RoPE turns each pair by
            itself.
    """

    name: ClassVar[str] = "balance_cache"
    by_place: ClassVar[tuple[str, ...] | None] = ()
    runs_after: ClassVar[tuple[str, ...]] = ("rotate", "smooth")  # which change what values there are
    before: ClassVar[str] = "kv_cache_io"

    def ends(self, part: fx.GraphModule) -> Iterator[Ends | None]:
        """Of the keys and the values of each attention."""
        for node in part.graph.nodes:
            if node.target in ATTENTION:
                yield _keys(node)
                yield _values(node)

    def factors(self, model: Model, context: PassContext, found: Sequence[Ends]) -> dict[str, Tensor]:
        """How large the numbers that share one become, over their geometric mean."""
        by_value, largest = {ends.value: ends for ends in found}, dict[str, Tensor]()

        def observe(node: fx.Node, value: Tensor) -> None:
            if (ends := by_value.get(name_of(node))) is not None:
                seen = _sizes(value, ends)
                largest[ends.value] = torch.maximum(largest.get(ends.value, seen), seen)

        observe_samples(model, context, observe, by_value)
        return {value: _over_mean(sizes) for value, sizes in largest.items()}


def _sizes(value: Tensor, ends: Ends) -> Tensor:
    """The radius of each pair of keys, the largest number of each head of values; (factors,)."""
    order = ends.given.argsort(stable=True).reshape(int(ends.given.max()) + 1, -1).T
    by_factor = value.flatten(0, 1)[:, order]  # (tokens, numbers of a factor, factors)
    sizes: Tensor = torch.linalg.vector_norm(by_factor, dim=1) if ends.rows else by_factor.abs().amax(dim=1)
    return sizes.amax(dim=0)


def _over_mean(sizes: Tensor) -> Tensor:
    size = sizes.clamp_min(float(sizes.max()) * LEAST).clamp_min(torch.finfo(torch.float32).tiny)
    return size / size.log().mean().exp()


def _keys(sdpa: fx.Node) -> Ends | None:
    query, key = (_turned(arg) for arg in sdpa.args[:2])
    if query is None or key is None:
        return None
    rows, gives, size = weights_of(query), weights_of(key), shape_of(sdpa)[-1]
    if rows is None or gives is None:
        return None
    heads, groups = shape_of(query)[-1] // size, shape_of(key)[-1] // size
    pair = torch.arange(size) % (size // 2)  # a pair's two channels are half a head apart
    given = (torch.arange(groups)[:, None] * (size // 2) + pair).flatten()
    return Ends(name_of(key), gives, given, rows, [], given[read_by_heads(heads, groups, size)])


def _values(sdpa: fx.Node) -> Ends | None:
    if (found := around(sdpa)) is None:
        return None
    given = torch.arange(found.groups).repeat_interleave(found.size)
    read = given[read_by_heads(found.heads, found.groups, found.size)]
    return Ends(name_of(found.value), found.gives, given, [], [found.reads], read)


def _turned(value: object) -> fx.Node | None:
    """The linear whose heads RoPE turns by halves into a value: cat(a cos - b sin, b cos + a sin); None for others."""
    joined = _behind(value)
    if joined.target is not aten.cat.default or len(joined.all_input_nodes) != 2:
        return None
    first, second = joined.all_input_nodes
    products = [*first.all_input_nodes, *second.all_input_nodes]
    if (first.target, second.target) != (aten.sub.Tensor, aten.add.Tensor) or len(products) != 4:
        return None
    halves = [p.all_input_nodes[0] for p in products if p.target is aten.mul.Tensor]
    if len(halves) != 4 or halves[2:] != [halves[1], halves[0]]:
        return None
    a, b = halves[:2]
    whole, half = a.all_input_nodes[0], shape_of(a)[-1]
    if [n.target for n in (a, b)] != [aten.slice.Tensor] * 2 or b.all_input_nodes != [whole]:
        return None
    if shape_of(whole)[-1] != 2 * half or [n.args[2] for n in (a, b)] != [0, half]:
        return None
    linear = _behind(whole)
    return linear if linear.target is aten.linear.default and len(linear.users) == 1 else None


def _behind(value: object) -> fx.Node:
    """Back through what leaves the channels of heads as they are."""
    assert isinstance(value, fx.Node)
    while value.target in REARRANGEMENT:
        (value,) = value.all_input_nodes
    return value
