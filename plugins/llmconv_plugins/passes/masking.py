"""How far the additive mask, and the scores that it is added to, have to reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from llmconv.graph import IO_META, MOVEMENT, Model, aten, inputs_of, name_of
from llmconv.quantization import Range

LEAST = 100.0  # that a mask takes off a score
BELOW = 30.0  # by which a masked score lies below every other: e^-30 of them, a whole context long, is nothing


def mask_ranges(model: Model, seen: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges of the mask and of its sums with scores, by what calibration saw of the scores themselves.

    One mask serves all heads, so it hides scores as far apart as those of the head where they spread most.
    """
    sums = {name: scores for name, scores in masked_sums(model) if name in seen and scores in seen}
    spread = max((seen[scores][1] - seen[scores][0] for scores in sums.values()), default=0.0)
    lowest = -max(LEAST, spread + BELOW)
    found = {name_of(mask): (lowest, 0.0) for mask in _masks(model)}
    return found | {name: (seen[scores][0] + lowest, seen[name][1]) for name, scores in sums.items()}


def _masks(model: Model) -> Iterator[fx.Node]:
    for graph in model.graphs.values():
        for part in graph.parts:
            yield from (n for n in inputs_of(part).values() if n.meta[IO_META].kind == "attention_mask")


def masked_sums(model: Model) -> Iterator[tuple[str, str]]:
    """The names of each sum of scores and a mask, and of the scores in it."""
    moved = list(_masks(model))
    for node in moved:  # grows
        for user in node.users:
            if user.target in MOVEMENT:
                moved.append(user)
            elif user.target is aten.add.Tensor:
                scores = [n for n in user.all_input_nodes if n is not node]
                yield from ((name_of(user), name_of(n)) for n in scores)
