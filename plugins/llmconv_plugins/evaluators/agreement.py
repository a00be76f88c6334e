"""How far a runtime's choices are from the checkpoint's in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmconv.evaluation import Evaluator, Floats, Logits, divergences, log_probabilities


@dataclass(frozen=True)
class Agreement(Evaluator):
    """The divergence of the next token's distribution from float's (`kl`, nats), and how often both like one most
    (`top1`, a share)."""

    name: ClassVar[str] = "agreement"
    compares: ClassVar[bool] = True

    def scores(self, window: Sequence[int], logits: Logits, of_float: Logits | None) -> Mapping[str, Floats]:
        """As `Evaluator.scores`, of every position of the window."""
        assert of_float is not None
        expected, found = log_probabilities(of_float), log_probabilities(logits)
        same = of_float.argmax(axis=1) == logits.argmax(axis=1)
        return {"kl": divergences(expected, found), "top1": same.astype(np.float64)}
