"""An evaluator: how often the token that comes is among the likeliest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmconv import hookimpl
from llmconv.evaluation import Evaluator, Floats, Logits


@dataclass(frozen=True)
class AmongFive(Evaluator):
    """The share of tokens that are among the five likeliest ones at their place."""

    name = "among_five"

    first: int = 5

    def scores(self, window: Sequence[int], logits: Logits, of_float: Logits | None) -> Mapping[str, Floats]:
        likeliest = np.argsort(-logits[:-1], axis=1)[:, : self.first]  # the last row is of a token that is not there
        found = likeliest == np.array(window[1:])[:, None]
        return {"share": found.any(axis=1).astype(np.float64)}


@hookimpl
def register_evaluators() -> list[type[Evaluator]]:
    return [AmongFive]
