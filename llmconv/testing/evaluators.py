"""Try an evaluator on random logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import PluginError
from llmconv.evaluation.evaluator import Evaluator, Figure, figure
from llmconv.plugins.frame import plugin_code

WINDOWS, TOKENS, VOCABULARY = 3, 12, 20


@dataclass(frozen=True)
class EvaluatorTrial:
    """What an evaluator measured.

    Attributes:
        figures: by metric.
        windows: the ids that it was given, and logits (tokens, vocabulary) of each.
    """

    figures: dict[str, Figure]
    windows: list[tuple[list[int], NDArray[np.float32]]]


def try_evaluator(evaluator: Evaluator, *, seed: int = 0) -> EvaluatorTrial:
    """Measure three windows of random tokens and logits; float's, where the evaluator compares, are near them.

    Raises:
        PluginError: a metric has no row, rows that are not finite, or is missing in one of the windows.
    """
    random = np.random.default_rng(seed)
    windows, rows = [], []
    for _ in range(WINDOWS):
        ids = random.integers(VOCABULARY, size=TOKENS).tolist()
        logits = random.standard_normal((TOKENS, VOCABULARY)).astype(np.float32)
        near = logits + 0.1 * random.standard_normal(logits.shape).astype(np.float32)
        windows.append((ids, logits))
        with plugin_code(evaluator, f"evaluator '{evaluator.name}'"):
            rows.append(dict(evaluator.scores(ids, logits, near if evaluator.compares else None)))
    if not rows[0] or any(row.keys() != rows[0].keys() for row in rows):
        raise PluginError(f"evaluator '{evaluator.name}' gives {[sorted(row) for row in rows]}, not the same metrics")
    for metric, found in ((metric, row[metric]) for row in rows for metric in row):
        if not len(found) or not np.isfinite(found).all():
            raise PluginError(f"evaluator '{evaluator.name}': '{metric}' has no rows, or rows that are not finite")
    figures = {metric: figure(evaluator, metric, "random", [row[metric] for row in rows]) for metric in rows[0]}
    return EvaluatorTrial(figures, windows)
