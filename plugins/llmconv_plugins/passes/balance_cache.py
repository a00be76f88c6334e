"""Have keys and values fill the range of their cache: factors in the weights that queries and o_proj undo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from llmconv import PassError
from llmconv.graph import MOVEMENT, SDPA, Model, aten, name_of, shape_of, uses_of
from llmconv.passes import Pass, PassContext
from llmconv.quantization import chosen_on_samples, observe_samples
from llmconv.weights import Columns, Derived, Expression, Held, Rows, Stored
from llmconv_plugins.passes.channels import around

LEAST = 1e-3  # of the largest channel: one that never says anything is not blown up
_ALONG = MOVEMENT - {aten.cat.default, aten.slice.Tensor, aten.select.int}  # leaves each channel of a head where it is


@dataclass(frozen=True)
class BalanceCache(Pass):
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
    runs_after: ClassVar[tuple[str, ...]] = ("rotate", "smooth")  # which change what values there are
    needs_calibration: ClassVar[bool] = True
    tolerance: ClassVar[float | None] = 1e-4

    def run(self, model: Model, context: PassContext) -> bool:
        """Look at the values, or take the factors of an earlier run, and replace the table of weights."""
        parts = [part for graph in model.graphs.values() for part in graph.parts]
        caches = list(_caches(parts[0]))
        if not caches or len(parts) > len(model.graphs):
            raise PassError("finds no attention in one whole graph; put balance_cache before kv_cache_io")
        known = chosen_on_samples(model, context, self.name, lambda: self._look(model, context, caches))
        table: dict[str, Expression] = {}
        for cache in caches:
            if (factors := known.get(cache.made)) is not None:
                cache.change(table, factors)
        if table:
            model.weights = Derived(model.weights, table)
        return bool(table)

    def _look(self, model: Model, context: PassContext, caches: Sequence[_Cache]) -> dict[str, Tensor]:
        by_value = {cache.made: cache for cache in caches}
        found: dict[str, Tensor] = {}

        def observe(node: fx.Node, value: Tensor) -> None:
            if (cache := by_value.get(name_of(node))) is not None:
                seen = cache.sizes(value)
                found[cache.made] = torch.maximum(found[cache.made], seen) if cache.made in found else seen

        observe_samples(model, context, observe)
        return {made: _factors(sizes) for made, sizes in found.items()}


def _factors(sizes: Tensor) -> Tensor:
    """Proportional to the sizes, of geometric mean 1."""
    size = sizes.clamp_min(float(sizes.max()) * LEAST).clamp_min(torch.finfo(torch.float32).tiny)
    return size / size.log().mean().exp()


@dataclass(frozen=True)
class _Cache:
    """What makes the keys or the values of an attention, and what reads them.

    Attributes:
        made: the linear that makes them, by structural name; its result is (1, tokens, groups * size).
        gives: its weight and bias.
        rows: weights and biases whose rows are multiplied: the queries' projection.
        columns: the weight whose columns are: o_proj.
        heads: of queries.
    """

    made: str
    gives: Sequence[str]
    rows: Sequence[str]
    columns: str | None
    heads: int
    groups: int
    size: int

    def sizes(self, value: Tensor) -> Tensor:
        """How large the numbers that share a factor become, (groups, pairs) of keys or (groups, 1) of values."""
        by_head = value.reshape(-1, self.groups, self.size)
        if self.columns is None:
            pairs = by_head.reshape(-1, self.groups, 2, self.size // 2)
            radii: Tensor = torch.linalg.vector_norm(pairs, dim=2)
            return radii.amax(dim=0)
        return by_head.abs().amax(dim=(0, 2))[:, None]

    def change(self, table: dict[str, Expression], factors: Tensor) -> None:
        """Put both ends into a table."""
        each = factors.repeat(
            1, self.size // factors.shape[1]
        )  # (groups, size): a pair's two channels are half a head apart
        given, read = each.flatten(), each.repeat_interleave(self.heads // self.groups, dim=0).flatten()
        for name in self.gives:
            table[name] = Rows(table.get(name, Stored(name)), Held(given), divide=True)
        for name in self.rows:
            table[name] = Rows(table.get(name, Stored(name)), Held(read))
        if self.columns is not None:
            table[self.columns] = Columns(table.get(self.columns, Stored(self.columns)), Held(read))


def _caches(part: fx.GraphModule) -> Iterator[_Cache]:
    used = {name_of(w): len(list(uses_of(w))) for w in part.graph.find_nodes(op="get_attr")}
    for node in part.graph.nodes:
        if node.target is SDPA:
            for found in (_keys(node), _values(node)):
                touched = [] if found is None else [*found.gives, *found.rows, *filter(None, [found.columns])]
                if found is not None and all(used.get(name) == 1 for name in touched):
                    yield found


def _keys(sdpa: fx.Node) -> _Cache | None:
    query, key = (_turned(arg) for arg in sdpa.args[:2])
    if query is None or key is None:
        return None
    size = shape_of(sdpa)[-1]
    heads, groups = shape_of(query)[-1] // size, shape_of(key)[-1] // size
    return _Cache(name_of(key), _weights(key), _weights(query), None, heads, groups, size)


def _values(sdpa: fx.Node) -> _Cache | None:
    if (found := around(sdpa)) is None:
        return None
    gives, reads, size = found
    made = _behind(sdpa.args[2])
    heads, groups = shape_of(sdpa)[1], shape_of(made)[-1] // size
    return _Cache(name_of(made), gives, [], reads, heads, groups, size)


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
    while value.target in _ALONG:
        (value,) = value.all_input_nodes
    return value


def _weights(linear: fx.Node) -> list[str]:
    return [name_of(arg) for arg in linear.args[1:] if isinstance(arg, fx.Node)]
