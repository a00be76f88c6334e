"""Write text: choose a next token from logits, feed it back, stop for a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmconv.checkpoint.tokenizer import Tokenizer
from llmconv.decoding.decoder import Array, ContextFullError, Decoder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder puts for half of a character


class Sampler:
    """Chooses tokens.

    Args:
        temperature: divides the logits; 0 takes the largest.
        top_k: only so many of the largest; 0 for all.
        top_p: only the largest that together have this probability.
        seed: of the random numbers.
    """

    def __init__(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._random = np.random.default_rng(seed)

    def choose(self, logits: Array) -> int:
        """A token id from one row of logits, (vocabulary,)."""
        if self.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")[: self.top_k or None]
        scaled = logits[order].astype(np.float64) / self.temperature
        weights = np.exp(scaled - scaled[0])
        weights /= weights.sum()
        kept = int(np.searchsorted(np.cumsum(weights), self.top_p)) + 1  # at least the first
        return int(self._random.choice(order[:kept], p=weights[:kept] / weights[:kept].sum()))


class Generation:
    """Tokens that follow a prompt; iterate once.

    Args:
        decoder: whose cache holds what came before the prompt.
        eos: ids that end the text; they are not given out.
        limit: the largest number of tokens.

    Attributes:
        reason: why it stopped; empty until then.

    Raises:
        ContextFullError: the prompt does not fit; raised before anything runs.
    """

    def __init__(
        self, decoder: Decoder, prompt: Sequence[int], sampler: Sampler, eos: Sequence[int], limit: int
    ) -> None:
        room = decoder.context - decoder.length
        if len(prompt) > room:
            raise ContextFullError(f"the prompt has {len(prompt)} tokens, and the context has room for {room}")
        self.decoder, self.prompt, self.sampler, self.eos, self.limit = decoder, list(prompt), sampler, eos, limit
        self.reason = ""

    def __iter__(self) -> Iterator[int]:
        unread = self.prompt
        for _ in range(self.limit):
            try:
                logits = self.decoder.read(unread)
            except ContextFullError:
                self.reason = f"the context of {self.decoder.context} tokens is full"
                return
            token = self.sampler.choose(logits[-1])
            if token in self.eos:
                self.reason = "end of text"
                return
            yield token
            unread = [token]
        self.reason = f"{self.limit} tokens"


def stream_text(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Iterator[int]) -> Iterator[str]:
    """The text of tokens as they come, in pieces that hold whole characters.

    Args:
        prompt: the ids before them, which decide whether the first token begins with a space.
    """
    ids = list(prompt)
    shown = tokenizer.decode(ids)
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith(REPLACEMENT):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(ids)[len(shown) :]
    if rest:
        yield rest
