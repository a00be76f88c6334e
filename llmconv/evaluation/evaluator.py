"""What measures a model: a plugin that looks at logits, position by position, and figures made of what it sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmconv.evaluation.perplexity import Floats, Logits

FLOAT = "float"  # what stands for the checkpoint itself, beside the names of runtimes


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        on: `float`, or a runtime.
        error: the standard error of the value, from how much windows differ; None of a single window.
        count: positions that were measured.
    """

    task: str
    metric: str
    on: str
    value: float
    error: float | None
    count: int


@dataclass(frozen=True)
class Evaluator(ABC):
    """Measures logits. A subclass is a frozen dataclass; its fields are options.

    Attributes:
        name: of the task on the command line.
        compares: whether it holds a runtime's logits against the checkpoint's in float.
    """

    name: ClassVar[str]
    compares: ClassVar[bool] = False

    @abstractmethod
    def scores(self, window: Sequence[int], logits: Logits, of_float: Logits | None) -> Mapping[str, Floats]:
        """One window's numbers, a row for each position that counts; a figure is made of the mean of each metric.

        Args:
            window: token ids.
            logits: (tokens, vocabulary) float32, a row for each token of the window.
            of_float: likewise, where the evaluator compares.
        """

    def value(self, metric: str, mean: float) -> float:
        """The figure's value from the mean of all positions."""
        return mean


def figure(evaluator: Evaluator, metric: str, on: str, rows: Sequence[Floats]) -> Figure:
    """Of all windows; the error is that of the mean of windows, carried over to the value by its slope there."""
    every = np.concatenate(rows)
    mean, error = float(every.mean()), None
    if len(rows) > 1:
        spread = float(np.std([float(row.mean()) for row in rows], ddof=1)) / len(rows) ** 0.5
        slope = (evaluator.value(metric, mean + 1e-6) - evaluator.value(metric, mean - 1e-6)) / 2e-6
        error = abs(slope) * spread
    return Figure(evaluator.name, metric, on, evaluator.value(metric, mean), error, len(every))
