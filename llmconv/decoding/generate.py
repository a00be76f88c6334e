"""From logits to a next token, and from tokens to text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmconv.decoding.decoder import Array
from llmconv.sources.sampling import Sampling
from llmconv.tokenizer.tokenizer import Tokenizer

STOPPED = "a stop sequence"  # why a text ended that the dialog would have gone on with
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder puts for half of a character


class Sampler:
    """Chooses tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Array, text: Sequence[int] = ()) -> int:
        """A token id from one row of logits, (vocabulary,).

        Args:
            text: ids of the text so far, which the penalty is for.
        """
        how = self.sampling
        if how.repetition_penalty != 1:
            logits = _penalized(logits, text, how.repetition_penalty)
        if how.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")[: how.top_k or None]
        scaled = logits[order].astype(np.float64) / how.temperature
        weights = np.exp(scaled - scaled[0])
        weights /= weights.sum()
        kept = int(np.searchsorted(np.cumsum(weights), how.top_p)) + 1  # at least the first
        return int(self._random.choice(order[:kept], p=weights[:kept] / weights[:kept].sum()))


def _penalized(logits: Array, text: Sequence[int], penalty: float) -> Array:
    found = logits.copy()
    ids = np.unique(np.asarray(text, dtype=np.int64))
    found[ids] = np.where(found[ids] < 0, found[ids] * penalty, found[ids] / penalty)
    return found


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


def until(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """The text up to where the first of `stops` begins; what may be the beginning of one is held back until it is not.

    Args:
        pieces: of the text; they are not read on behind a stop.
    """
    held = ""
    for piece in pieces:
        held += piece
        if places := [place for stop in stops if (place := held.find(stop)) >= 0]:
            if text := held[: min(places)]:
                yield text
            return
        kept = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        shown, held = held[: len(held) - kept], held[len(held) - kept :]
        if shown:
            yield shown
    if held:
        yield held
