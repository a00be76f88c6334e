"""A dialog over logits: what it remembers, and why it stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llmconv.decoding.decoder import Array
from llmconv.decoding.dialog import DecoderDialog
from llmconv.decoding.generate import Sampler
from llmconv.errors import ContextFullError
from llmconv.sources.sampling import Sampling


class FakeDecoder:
    """Counts up: after token t it finds t + 1 most likely; a context of 8."""

    context = 8
    crowded = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.length = 0
        self.seen: list[int] = []

    def rewind(self, length: int) -> int:
        self.length = min(length, self.length)
        self.seen = self.seen[: self.length]
        return self.length

    def read(self, tokens: Sequence[int]) -> Array:
        if self.length + len(tokens) > self.context:
            raise ContextFullError("full")
        self.length += len(tokens)
        self.seen += tokens
        logits = np.zeros((len(tokens), 20), dtype=np.float32)
        for row, token in enumerate(tokens):
            logits[row, token + 1] = 1.0
        return logits


def dialog(eos: tuple[int, ...] = ()) -> DecoderDialog:
    decoder: Any = FakeDecoder()
    return DecoderDialog(decoder, Sampler(Sampling()), eos)


def answer(prompt: list[int], eos: tuple[int, ...] = (), limit: int = 100) -> tuple[list[int], str]:
    made = dialog(eos)
    return list(made.query(prompt, limit)), made.reason


def test_reasons_to_stop() -> None:
    assert answer([1, 2], limit=3) == ([3, 4, 5], "3 tokens")
    assert answer([1, 2], eos=(5, 9)) == ([3, 4], "end of text")
    tokens, reason = answer([1, 2])
    assert tokens == [3, 4, 5, 6, 7, 8, 9]  # 8 positions are read, and the last one's logits give one token more
    assert reason == "the context of 8 tokens is full"


def test_prompt_beyond_the_context_is_refused_before_it_runs() -> None:
    made = dialog()
    with pytest.raises(ContextFullError, match="the prompt has 9 tokens, and the context has room for 8"):
        made.query(list(range(9)), 10)
    assert made.length == 0


def test_a_second_turn_reads_the_last_token_of_the_first_answer() -> None:
    made = dialog()
    assert list(made.query([1], 2)) == [2, 3]
    assert made.length == 3
    assert list(made.query([10], 2)) == [11, 12]
    assert made.decoder.seen == [1, 2, 3, 10, 11]  # type: ignore[attr-defined]


def test_a_second_turn_after_the_end_of_text() -> None:
    made = dialog(eos=(3,))
    assert list(made.query([1], 5)) == [2]
    assert list(made.query([10], 1)) == [11]
    assert made.decoder.seen == [1, 2, 10]  # type: ignore[attr-defined]


def test_what_does_not_fit_behind_an_answer_is_refused() -> None:
    made = dialog()
    list(made.query([1, 2, 3], 3))
    with pytest.raises(ContextFullError, match="has 3 tokens, and the context has room for 2"):
        made.query([1, 2, 3], 1)


def test_reset_forgets() -> None:
    made = dialog()
    list(made.query([1], 2))
    made.reset()
    assert made.length == 0
    assert list(made.query([4], 1)) == [5]


def test_rewound_to_how_a_text_begins() -> None:
    made = dialog()
    assert list(made.query([1, 2], 3)) == [3, 4, 5]
    text = [1, 2, 3, 7]
    kept = made.rewind(text)
    assert (kept, made.length) == (3, 3)
    assert list(made.query(text[kept:], 2)) == [8, 9]
    assert made.decoder.seen == [1, 2, 3, 7, 8]  # type: ignore[attr-defined]
    assert made.rewind([1, 2, 3]) == 2  # one is left to read
    assert made.rewind([5]) == made.length == 0


def test_a_turn_behind_what_is_forgotten_has_everything_read_again() -> None:
    made = dialog()
    assert list(made.query([1, 2], 2)) == [3, 4]
    made.decoder.crowded = True  # type: ignore[misc]
    assert list(made.query([10], 1)) == [11]
    assert made.decoder.seen == [1, 2, 3, 4, 10]  # type: ignore[attr-defined]
