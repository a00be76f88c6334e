"""What each graph adds to a conversion, beside the weights that it shares with the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmconv.backends.backend import Stage
from llmconv.graph.sizes import GraphSize, PartSize

Stages = Callable[[Sequence[PartSize]], list[Stage]]


@dataclass(frozen=True)
class Addition:
    """What one graph adds, estimated: the stages with it less those without it.

    Attributes:
        ar, context: tokens that it reads in one run, positions that it sees.
        seconds: of all stages.
        memory: of the largest peak, bytes.
        disk: bytes that stay.
    """

    graph: str
    ar: int
    context: int
    seconds: float
    memory: int
    disk: int


def additions(parts: Sequence[PartSize], stages: Sequence[Stage], stages_of: Stages) -> list[Addition]:
    """Of each graph; none where there is but one.

    Args:
        stages: of the parts.
        stages_of: of other parts.
    """
    graphs = parts[0].graphs
    return [_addition(graph, parts, stages, stages_of) for graph in graphs] if len(graphs) > 1 else []


def _addition(graph: GraphSize, parts: Sequence[PartSize], stages: Sequence[Stage], stages_of: Stages) -> Addition:
    others = stages_of(
        [replace(part, graphs=tuple(g for g in part.graphs if g.graph != graph.graph)) for part in parts]
    )
    return Addition(
        graph.graph,
        graph.ar,
        graph.context,
        sum(s.seconds for s in stages) - sum(s.seconds for s in others),
        max(s.memory for s in stages) - max(s.memory for s in others),
        sum(s.disk for s in stages) - sum(s.disk for s in others),
    )
