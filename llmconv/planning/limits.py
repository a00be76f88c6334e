"""What the target says to each part: process domain, memory of a graph, time a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmconv.graph.sizes import GraphSize, PartSize
from llmconv.planning.resplit import ar_that_fits, part_count_that_fits
from llmconv.quantities import Unit, quantity
from llmconv.target import Chipset

# The one figure at hand: part 4 of Llama-2-7B at ar 1024 (942 MB of weights, 143 MB in and out) "needs 2,347,229 KB",
# while parts 1 to 3 of 4 loaded. Twice the sum of weights, embedding tables apart, of what goes in and out, past keys
# and values apart, and of the compiler's buffers gives 2,340,000 KB for it and 1,940,000 KB for the others.
GRAPH_COPIES = 2
# The compiler's buffers at ar 1024: 67 MB beside 101 MB of weights for one layer of it, 122 MB for eight with lm_head.
BUFFERS_A_TOKEN = 0.12 / 1024  # bytes beside one byte of weights
CLEARLY = 1.5  # times the bound, from which an estimate of a graph's memory stops a conversion

Verdict = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Limit:
    """One bound of the target and what a part needs of it, which is an estimate.

    Attributes:
        part: its name in messages, e.g. "part 1 of 4".
        what: the bound, e.g. "process domain".
        unit: of `need` and `bound`: "B" or "s".
        advice: the recipe setting that fits, or "" where nothing is wrong or nothing known fits.
    """

    part: str
    what: str
    need: float
    bound: float
    unit: Unit
    verdict: Verdict
    advice: str = ""

    def message(self, chipset: str, advice: str | None = None) -> str:
        """One line for errors and warnings; `advice` instead of its own."""
        advice = self.advice if advice is None else advice
        need, bound = quantity(self.need, self.unit), quantity(self.bound, self.unit)
        fitting = f"set {advice}" if advice else "no part count fits; choose another target"
        return f"{self.part}: {self.what} ≈ {need}, more than the {bound} of {chipset}; {fitting}"


def domain_bytes(part: PartSize) -> int:
    """Memory of a process domain: the weights, what the largest graph takes in and gives, and its buffers."""
    return part.weight_bytes + max(g.io_bytes + _buffers(part, g) for g in part.graphs)


def graph_bytes(part: PartSize, graph: GraphSize) -> int:
    """Memory that the device asks for before it loads a graph."""
    past = round(graph.cache_bytes * (graph.context - graph.ar) / graph.context)
    return GRAPH_COPIES * (_multiplied(part) + graph.io_bytes - past + _buffers(part, graph))


def bytes_a_token(part: PartSize) -> int:
    """What writing a token reads of memory: every weight but embedding tables, and the keys and values, once."""
    return _multiplied(part) + min(g.cache_bytes for g in part.graphs)


def seconds_a_token(part: PartSize, bandwidth: float) -> float:
    """Time to read the weights, and the keys and values, once at full bandwidth."""
    return bytes_a_token(part) / bandwidth


def _multiplied(part: PartSize) -> int:
    return part.weight_bytes - part.table_bytes


def _buffers(part: PartSize, graph: GraphSize) -> int:
    return round(BUFFERS_A_TOKEN * graph.ar * _multiplied(part))


def limits(parts: Sequence[PartSize], chipset: Chipset) -> list[Limit]:
    """Every bound for every part, the worst graph of a part standing for all."""
    found = []
    for part in parts:
        name = f"part {part.number + 1} of {len(parts)}"
        found.append(_domain(name, part, parts, chipset))
        found.append(_graph(name, part, parts, chipset))
        if chipset.bandwidth is not None:
            found.append(_time(name, part, parts, chipset))
    return found


def _domain(name: str, part: PartSize, parts: Sequence[PartSize], chipset: Chipset) -> Limit:
    need, bound = domain_bytes(part), chipset.domain_bytes
    if need <= bound:
        return Limit(name, "process domain", need, bound, "B", "ok")
    count = part_count_that_fits(parts, lambda made: all(domain_bytes(p) <= bound for p in made))
    return Limit(name, "process domain", need, bound, "B", "error", _more_parts(count))


def _graph(name: str, part: PartSize, parts: Sequence[PartSize], chipset: Chipset) -> Limit:
    bound = chipset.graph_bytes
    need, graph = max(((graph_bytes(part, g), g) for g in part.graphs), key=lambda pair: pair[0])
    if need <= bound:
        return Limit(name, "graph memory", need, bound, "B", "ok")

    def fits(made: Sequence[PartSize]) -> bool:
        return all(graph_bytes(p, g) <= bound for p in made for g in p.graphs if g.graph == graph.graph)

    ar = ar_that_fits(parts, graph.graph, fits)
    advice = [f"graphs.{graph.graph}.ar = {ar}"] if ar else []
    advice += [_more_parts(count)] if (count := part_count_that_fits(parts, fits)) else []
    verdict: Verdict = "error" if need > CLEARLY * bound else "warning"
    return Limit(name, "graph memory", need, bound, "B", verdict, " or ".join(advice))


def _time(name: str, part: PartSize, parts: Sequence[PartSize], chipset: Chipset) -> Limit:
    bandwidth, bound = chipset.bandwidth or 0.0, chipset.part_seconds
    need = seconds_a_token(part, bandwidth)
    if need <= bound:
        return Limit(name, "time a token", need, bound, "s", "ok")
    count = part_count_that_fits(parts, lambda made: all(seconds_a_token(p, bandwidth) <= bound for p in made))
    return Limit(name, "time a token", need, bound, "s", "warning", _more_parts(count))


def _more_parts(count: int | None) -> str:
    return f"passes.split_model.parts = {count}" if count else ""
