"""Choosing tokens, stopping for a reason, and text that holds whole characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llmconv.decoding.decoder import Array, ContextFullError
from llmconv.decoding.generate import REPLACEMENT, Generation, Sampler, stream_text

LOGITS = np.log(np.array([0.1, 0.5, 0.3, 0.1], dtype=np.float32))


class FakeDecoder:
    """Counts up: after token t it finds t + 1 most likely; a context of 8."""

    context = 8

    def __init__(self) -> None:
        self.length = 0

    def read(self, tokens: Sequence[int]) -> Array:
        if self.length + len(tokens) > self.context:
            raise ContextFullError("full")
        self.length += len(tokens)
        logits = np.zeros((len(tokens), 20), dtype=np.float32)
        for row, token in enumerate(tokens):
            logits[row, token + 1] = 1.0
        return logits


def generate(prompt: list[int], eos: tuple[int, ...] = (), limit: int = 100) -> tuple[list[int], str]:
    decoder: Any = FakeDecoder()
    generation = Generation(decoder, prompt, Sampler(), eos, limit)
    return list(generation), generation.reason


def test_greedy_takes_the_largest() -> None:
    assert {Sampler().choose(LOGITS) for _ in range(5)} == {1}


def drawn(**options: Any) -> Counter[int]:
    sampler = Sampler(**options)
    return Counter(sampler.choose(LOGITS) for _ in range(2000))


def test_temperature_1_draws_by_probability() -> None:
    found = drawn(temperature=1.0)
    assert found[1] / 2000 == pytest.approx(0.5, abs=0.05)  # more than four deviations of 2000 draws
    assert found[0] / 2000 == pytest.approx(0.1, abs=0.03)


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert drawn(temperature=1.0, top_k=2).keys() == {1, 2}
    assert drawn(temperature=1.0, top_p=0.6).keys() == {1, 2}  # 0.5 is not enough, 0.8 is
    assert drawn(temperature=1.0, top_p=0.0).keys() == {1}  # at least the likeliest


def test_low_temperature_sharpens() -> None:
    assert drawn(temperature=0.25)[1] > drawn(temperature=1.0)[1] > drawn(temperature=4.0)[1]


def test_a_seed_gives_the_same_draws() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(temperature=1.0, seed=seed)
        return [sampler.choose(LOGITS) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)


def test_reasons_to_stop() -> None:
    assert generate([1, 2], limit=3) == ([3, 4, 5], "3 tokens")
    assert generate([1, 2], eos=(5, 9)) == ([3, 4], "end of text")
    tokens, reason = generate([1, 2])
    assert tokens == [3, 4, 5, 6, 7, 8, 9]  # 8 positions are read, and the last one's logits give one token more
    assert reason == "the context of 8 tokens is full"


def test_prompt_beyond_the_context_is_refused_before_it_runs() -> None:
    decoder: Any = FakeDecoder()
    with pytest.raises(ContextFullError, match="the prompt has 9 tokens, and the context has room for 8"):
        Generation(decoder, list(range(9)), Sampler(), (), 10)
    assert decoder.length == 0


class Bytes:
    """A tokenizer whose ids are bytes."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


def test_pieces_hold_whole_characters() -> None:
    tokenizer: Any = Bytes()
    pieces = list(stream_text(tokenizer, list(b"a"), iter("bé×c".encode())))
    assert pieces == ["b", "é", "×", "c"]


def test_half_a_character_at_the_end_is_shown() -> None:
    tokenizer: Any = Bytes()
    assert list(stream_text(tokenizer, [], iter("aé".encode()[:-1]))) == ["a", REPLACEMENT]
