"""Parts as they would be at another part count or another ar: what an error suggests is tried on these first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from llmconv.graph.sizes import GraphSize, PartSize

_SUMMED = ("weight_bytes", "table_bytes", "elements")

Fits = Callable[[list[PartSize]], bool]


def resplit(parts: Sequence[PartSize], count: int) -> list[PartSize]:
    """About what `count` parts of the same layers would be; the ends keep what they have beside layers.

    A layer is taken to be as large as those of the part with the smallest ones, which has the fewest other weights.
    """
    layers = sum(p.layers for p in parts)
    one = {name: min(getattr(p, name) / p.layers for p in parts) for name in _SUMMED}
    cache = {g.graph: g.cache_bytes / parts[0].layers for g in parts[0].graphs}
    sizes = [layers // count + (i < layers % count) for i in range(count)][::-1]  # the end with lm_head gets no more
    made = []
    for i, size in enumerate(sizes):
        sums = {name: size * one[name] for name in _SUMMED}
        for end, place in ((parts[0], 0), (parts[-1], count - 1)):
            if i == place and (len(parts) > 1 or place == 0):
                sums = {name: sums[name] + getattr(end, name) - end.layers * one[name] for name in _SUMMED}
        model = parts[0] if i == 0 else parts[-1] if i == count - 1 else parts[len(parts) // 2]
        graphs = tuple(_with_cache(g, round(size * cache[g.graph])) for g in model.graphs)
        whole = {name: round(value) for name, value in sums.items()}
        made.append(replace(model, number=i, layers=size, graphs=graphs, **whole))
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
