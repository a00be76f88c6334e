"""How much text surprises a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import ClassVar

from llmconv.evaluation import Evaluator, Floats, Logits, surprises


@dataclass(frozen=True)
class Perplexity(Evaluator):
    """exp of the mean negative log likelihood of each token after its window's first."""

    name: ClassVar[str] = "perplexity"

    def scores(self, window: Sequence[int], logits: Logits, of_float: Logits | None) -> Mapping[str, Floats]:
        """As `Evaluator.scores`: nats a token."""
        return {"perplexity": surprises(logits, window)}

    def value(self, metric: str, mean: float) -> float:
        """Of nats a token."""
        return exp(mean)
