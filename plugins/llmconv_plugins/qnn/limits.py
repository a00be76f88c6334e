"""What a Snapdragon's NPU says to each part: process domain, memory of a graph, time a token."""

from __future__ import annotations

from collections.abc import Sequence

from llmconv.backends import Limit
from llmconv.graph import GraphSize, PartSize, bytes_a_token
from llmconv.target import Chipset

# The one figure at hand: part 4 of Llama-2-7B at ar 1024 (942 MB of weights, 143 MB in and out) "needs 2,347,229 KB",
# while parts 1 to 3 of 4 loaded. Twice the sum of weights, embedding tables apart, of what goes in and out, past keys
# and values apart, and of the compiler's buffers gives 2,340,000 KB for it and 1,940,000 KB for the others.
GRAPH_COPIES = 2
# The compiler's buffers at ar 1024: 67 MB beside 101 MB of weights for one layer of it, 122 MB for eight with lm_head.
BUFFERS_A_TOKEN = 0.12 / 1024  # bytes beside one byte of weights
CLEARLY = 1.5  # times the bound, from which an estimate of a graph's memory stops a conversion


def domain_bytes(part: PartSize) -> int:
    """Memory of a process domain: the weights, what the largest graph takes in and gives, and its buffers."""
    return part.weight_bytes + max(g.io_bytes + _buffers(part, g) for g in part.graphs)


def graph_bytes(part: PartSize, graph: GraphSize) -> int:
    """Memory that the device asks for before it loads a graph."""
    past = round(graph.cache_bytes * (graph.context - graph.ar) / graph.context)
    return GRAPH_COPIES * (_multiplied(part) + graph.io_bytes - past + _buffers(part, graph))


def seconds_a_token(part: PartSize, bandwidth: float) -> float:
    """Time to read the weights, and the keys and values, once at full bandwidth."""
    return bytes_a_token(part) / bandwidth


def _multiplied(part: PartSize) -> int:
    return part.weight_bytes - part.table_bytes


def _buffers(part: PartSize, graph: GraphSize) -> int:
    return round(BUFFERS_A_TOKEN * graph.ar * _multiplied(part))


def htp_limits(parts: Sequence[PartSize], chipset: Chipset) -> list[Limit]:
    """Every bound for every part, the worst graph of a part standing for all."""
    found = []
    for part in parts:
        name = f"part {part.number + 1} of {len(parts)}"
        need, bound = domain_bytes(part), chipset.domain_bytes
        found.append(Limit(name, "process domain", need, bound, "B", "ok" if need <= bound else "error"))
        found.append(_graph(name, part, chipset.graph_bytes))
        if chipset.bandwidth is not None:
            seconds, most = seconds_a_token(part, chipset.bandwidth), chipset.part_seconds
            found.append(Limit(name, "time a token", seconds, most, "s", "ok" if seconds <= most else "warning"))
    return found


def _graph(name: str, part: PartSize, bound: int) -> Limit:
    need, graph = max(((graph_bytes(part, g), g) for g in part.graphs), key=lambda pair: pair[0])
    if need <= bound:
        return Limit(name, "graph memory", need, bound, "B", "ok")
    return Limit(name, "graph memory", need, bound, "B", "error" if need > CLEARLY * bound else "warning", graph.graph)
