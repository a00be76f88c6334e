"""From logits to a next token, and from tokens to text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmconv.decoding.decoder import Array
from llmconv.sources.sampling import Sampling
from llmconv.tokenizer.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder puts for half of a character


class Sampler:
    """Chooses tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Array) -> int:
        """A token id from one row of logits, (vocabulary,)."""
        how = self.sampling
        if how.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")[: how.top_k or None]
        scaled = logits[order].astype(np.float64) / how.temperature
        weights = np.exp(scaled - scaled[0])
        weights /= weights.sum()
        kept = int(np.searchsorted(np.cumsum(weights), how.top_p)) + 1  # at least the first
        return int(self._random.choice(order[:kept], p=weights[:kept] / weights[:kept].sum()))


def stream_text(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Iterator[int]) -> Iterator[str]:
    """The text of tokens as they come, in pieces that hold whole characters.

    Args:
        prompt: the ids before them, which decide whether the first token begins with a space.
    """
    window = list(prompt)  # ids that are decoded again for each token
    piece: list[int] = []  # the last of them, not shown yet
    shown = tokenizer.decode(window)
    for token in tokens:
        window, piece = [*window, token], [*piece, token]
        text = tokenizer.decode(window)
        if text.endswith(REPLACEMENT):
            continue
        new = text[len(shown) :]
        yield new
        shown = text
        if new.strip():  # behind a space or a control token alone, the next token would be written otherwise
            alone = tokenizer.decode(piece)
            if alone.strip() == new.strip():
                window, shown = piece, alone
            piece = []
    rest = tokenizer.decode(window)[len(shown) :]
    if rest:
        yield rest
