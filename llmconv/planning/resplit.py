"""Parts as they would be at another part count or another ar: what an error suggests is tried on these first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from llmconv.graph.sizes import GraphSize, PartSize, balance

Fits = Callable[[list[PartSize]], bool]


def resplit(parts: Sequence[PartSize], count: int) -> list[PartSize]:
    """What `count` parts of the same layers would be, if layers are alike, with the embedding first and lm_head last.

    Where all parts are ends, those between them are taken to have inputs and outputs as large as the last one's.
    """
    layers = sum(p.layers for p in parts)
    tables, heads = sum(p.table_bytes for p in parts), sum(p.head_bytes for p in parts)
    a_layer = (sum(p.weight_bytes for p in parts) - tables - heads) / layers
    elements = sum(p.elements for p in parts)
    sizes = balance([a_layer + (i == 0) * tables + (i == layers - 1) * heads for i in range(layers)], count)
    made = []
    for i, size in enumerate(sizes):
        like = parts[0] if i == 0 else parts[-1] if i == count - 1 else parts[len(parts) // 2]
        table, head = tables if i == 0 else 0, heads if i == count - 1 else 0
        weights = round(size * a_layer) + table + head
        graphs = tuple(_with_cache(g, round(g.cache_bytes * size / like.layers)) for g in like.graphs)
        share = elements * size // layers
        made.append(PartSize(i, size, weights, table, head, share, like.largest, graphs))
    return made


def _with_cache(graph: GraphSize, cache_bytes: int) -> GraphSize:
    share = cache_bytes / graph.cache_bytes if graph.cache_bytes else 1
    past = round(cache_bytes * (graph.context - graph.ar) / graph.context)
    old_past = round(graph.cache_bytes * (graph.context - graph.ar) / graph.context)
    return replace(
        graph,
        cache_bytes=cache_bytes,
        input_bytes=graph.input_bytes - old_past + past,
        output_bytes=graph.output_bytes - (graph.cache_bytes - old_past) + cache_bytes - past,
        nodes=round(graph.nodes * share),
    )


def with_ar(part: PartSize, graph: str, ar: int) -> PartSize:
    """The part with one of its graphs reading `ar` tokens at once; its inputs and outputs shrink in proportion."""
    graphs = []
    for g in part.graphs:
        others = round((g.io_bytes - g.cache_bytes) * ar / g.ar)
        past = round(g.cache_bytes * (g.context - ar) / g.context)
        smaller = replace(g, ar=ar, input_bytes=past, output_bytes=g.cache_bytes - past + others)
        graphs.append(smaller if g.graph == graph else g)
    return replace(part, graphs=tuple(graphs))


def part_count_that_fits(parts: Sequence[PartSize], fits: Fits) -> int | None:
    """The smallest part count above the present one that fits, or None."""
    if not all(p.layers for p in parts):
        return None
    counts = range(len(parts) + 1, sum(p.layers for p in parts) + 1)
    return next((n for n in counts if fits(resplit(parts, n))), None)


def ar_that_fits(parts: Sequence[PartSize], graph: str, fits: Fits) -> int | None:
    """The largest half, quarter, … of a graph's ar that fits, or None."""
    ar = next(g.ar for g in parts[0].graphs if g.graph == graph)
    return next((a for a in _halves(ar) if fits([with_ar(p, graph, a) for p in parts])), None)


def _halves(ar: int) -> Iterator[int]:
    while ar > 1:
        ar //= 2
        yield ar
