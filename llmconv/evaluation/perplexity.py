"""Perplexity of text, window by window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmconv.decoding.decoder import Decoder
from llmconv.heap import trim

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]

ROWS = 32  # of logits whose probabilities are held at once: in double precision they are large


def log_probabilities(logits: Logits) -> Floats:
    """Of each token at each position, (positions, vocabulary)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def divergences(expected: Floats | Logits, found: Floats | Logits) -> Floats:
    """How far one distribution is from the expected one at each position, nats; both as log probabilities."""
    return np.asarray((np.exp(expected) * (expected - found)).sum(axis=1))


def surprises(logits: Logits, window: Sequence[int]) -> Floats:
    """The negative log likelihood of each token after a window's first, nats.

    Args:
        logits: (tokens, vocabulary), a row for each token of the window.
    """
    following, found = np.asarray(window[1:]), [np.empty(0)]
    for i in range(0, len(following), ROWS):
        some = following[i : i + ROWS]
        found.append(-log_probabilities(logits[i : i + len(some)])[np.arange(len(some)), some])
    return np.concatenate(found)


def perplexity(decoder: Decoder, windows: Sequence[Sequence[int]]) -> float:
    """exp of the mean negative log likelihood of each token after its window's first."""
    found, width = [], max(runner.ar for runner in decoder.runners)
    for window in windows:
        decoder.reset()
        for i in range(0, len(window) - 1, width):  # logits of a run at a time
            some = window[i : i + width + 1]
            found.append(surprises(decoder.read(list(some[:width])), some))
        trim()  # logits, between which smaller values lie: else memory grows from window to window
    return float(np.exp(np.concatenate(found).mean()))
