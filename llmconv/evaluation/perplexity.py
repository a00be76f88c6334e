"""Perplexity of text, window by window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmconv.decoding.decoder import Decoder


def perplexity(decoder: Decoder, windows: Sequence[Sequence[int]]) -> float:
    """exp of the mean negative log likelihood of each token after its window's first, which is BOS."""
    total, count = 0.0, 0
    for window in windows:
        decoder.reset()
        logits = decoder.read(list(window)).astype(np.float64)[:-1]
        logits -= logits.max(axis=1, keepdims=True)
        targets = logits[np.arange(len(logits)), window[1:]]
        total += float((np.log(np.exp(logits).sum(axis=1)) - targets).sum())
        count += len(logits)
    return float(np.exp(total / count))
