"""One conversation with a model, whatever runs it: ids in, ids out, and what was read stays read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from llmconv.decoding.decoder import Decoder
from llmconv.decoding.generate import Sampler
from llmconv.errors import ContextFullError


class Dialog(ABC):
    """Reads ids and writes ids, and remembers both until it is reset.

    Attributes:
        reason: why the last answer ended; empty until then.
    """

    reason: str = ""

    @property
    @abstractmethod
    def context(self) -> int:
        """How many ids it can remember."""

    @property
    @abstractmethod
    def length(self) -> int:
        """How many ids it remembers, those that it wrote included."""

    @abstractmethod
    def query(self, tokens: Sequence[int], limit: int) -> Iterator[int]:
        """Read ids, then write at most `limit`, each given out as it comes; an id that ends the text is not.

        Raises:
            ContextFullError: the ids do not fit; raised before anything runs.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    def rewind(self, text: Sequence[int]) -> int:
        """Remember no more than how `text` begins.

        Returns:
            How many ids of it are remembered, fewer than all; the others are to be read by the next query.
        """
        self.reset()
        return 0

    def check_room(self, tokens: Sequence[int]) -> None:
        """Whether ids fit behind what is remembered.

        Raises:
            ContextFullError: they do not.
        """
        room = self.context - self.length
        if len(tokens) > room:
            raise ContextFullError(f"the prompt has {len(tokens)} tokens, and the context has room for {room}")


class DecoderDialog(Dialog):
    """A dialog over graphs that give logits.

    Args:
        eos: ids that end the text.
    """

    def __init__(self, decoder: Decoder, sampler: Sampler, eos: Sequence[int]) -> None:
        self.decoder, self.sampler, self.eos = decoder, sampler, frozenset(eos)
        self._unread: list[int] = []  # written, and not yet read back
        self._read: list[int] = []

    @property
    def context(self) -> int:
        """Of the widest graph."""
        return self.decoder.context

    @property
    def length(self) -> int:
        """What the cache holds, and the last id written."""
        return self.decoder.length + len(self._unread)

    def query(self, tokens: Sequence[int], limit: int) -> Iterator[int]:
        """Read ids, then write."""
        self.check_room(tokens)
        if self.decoder.crowded:
            again = [*self._read, *self._unread]
            self.reset()
            self._unread = again
        self._unread += tokens
        return self._write(limit)

    def _write(self, limit: int) -> Iterator[int]:
        self.reason = ""
        for _ in range(limit):
            try:
                logits = self.decoder.read(self._unread)
                self._read += self._unread
            except ContextFullError:
                self.reason = f"the context of {self.context} tokens is full"
                return
            self._unread = []
            token = self.sampler.choose(logits[-1], self._read)
            if token in self.eos:
                self.reason = "end of text"
                return
            self._unread = [token]
            yield token
        self.reason = f"{limit} tokens"

    def reset(self) -> None:
        """Forget everything."""
        self.decoder.reset()
        self._unread, self._read = [], []

    def rewind(self, text: Sequence[int]) -> int:
        """Forget the cached positions behind what the text and the cache begin with alike."""
        kept = self.decoder.rewind(common(self._read, text[:-1]))
        self._unread, self._read = [], self._read[:kept]
        return kept


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many ids both begin."""
    both = min(len(first), len(second))
    return next((i for i in range(both) if first[i] != second[i]), both)
