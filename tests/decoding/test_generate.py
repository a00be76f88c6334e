"""Choosing tokens, and text that holds whole characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llmconv.decoding.generate import REPLACEMENT, Sampler, stream_text, until
from llmconv.recipe import shipped
from llmconv.sources.sampling import Sampling
from llmconv.tokenizer import Tokenizer

LOGITS = np.log(np.array([0.1, 0.5, 0.3, 0.1], dtype=np.float32))


def test_greedy_takes_the_largest() -> None:
    assert {Sampler(Sampling()).choose(LOGITS) for _ in range(5)} == {1}


def drawn(**options: Any) -> Counter[int]:
    sampler = Sampler(Sampling(**options))
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
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)


class Bytes:
    """A tokenizer whose ids are bytes."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


def test_pieces_hold_whole_characters() -> None:
    tokenizer: Any = Bytes()
    pieces = list(stream_text(tokenizer, list(b"a"), iter("bé×c".encode())))
    assert pieces == ["b", "é", "×", "c"]


TEXTS = ["Once upon a time,  two\n\n\t cats.", "é 日本 😀😀 a", "   ", "<s> a </s>", "", "x\n 日 . y"]


@pytest.mark.parametrize("begin", [0, 1, 3])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_that_all_ids_together_are(text: str, begin: int) -> None:
    tokenizer = Tokenizer(shipped.folder() / "tiny_llama" / "tokenizer.model")
    ids = [1, *tokenizer.encode("a"), *tokenizer.encode(text), 2, 1, *tokenizer.encode(text)]
    shown = tokenizer.decode(ids[:begin])
    assert "".join(stream_text(tokenizer, ids[:begin], iter(ids[begin:]))) == tokenizer.decode(ids)[len(shown) :]


def test_a_token_has_few_others_decoded_again() -> None:
    class Counted(Bytes):
        longest = 0

        def decode(self, ids: Sequence[int]) -> str:
            self.longest = max(self.longest, len(ids))
            return super().decode(ids)

    tokenizer: Any = Counted()
    text = "a day, 日本 and é; " * 50
    assert "".join(stream_text(tokenizer, [], iter(text.encode()))) == text
    assert tokenizer.longest < 10


def test_half_a_character_at_the_end_is_shown() -> None:
    tokenizer: Any = Bytes()
    assert list(stream_text(tokenizer, [], iter("aé".encode()[:-1]))) == ["a", REPLACEMENT]


def test_a_penalty_is_that_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits, text = np.random.default_rng(0).normal(size=50).astype(np.float32), [*range(0, 50, 3)] * 2
    text.append(int(logits.argmax()))
    process = processors.RepetitionPenaltyLogitsProcessor(penalty=5.0)
    expected = int(process(torch.tensor([text]), torch.from_numpy(logits)[None])[0].argmax())
    assert expected != text[-1]
    assert Sampler(Sampling(repetition_penalty=5.0)).choose(logits, text) == expected


@pytest.mark.parametrize(
    ("stops", "shown"),
    [
        ([], "one two three"),
        (["two"], "one "),
        (["three", "o t"], "one tw"),
        (["e t", "ne"], "o"),
        (["threes", "x"], "one two three"),
        (["one"], ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 13])
def test_a_text_ends_where_the_first_stop_begins(stops: list[str], shown: str, size: int) -> None:
    text = "one two three"
    pieces = list(until((text[i : i + size] for i in range(0, len(text), size)), stops))
    assert "".join(pieces) == shown
    assert all(pieces)


def test_nothing_is_read_behind_a_stop_and_what_cannot_be_one_is_shown_at_once() -> None:
    pieces = iter(["a", "b", "<", "|x", "<|", "e", "nd|>", "never"])
    shown = until(pieces, ["<|end|>"])
    assert [next(shown), next(shown), next(shown)] == ["a", "b", "<|x"]
    assert list(shown) == []
    assert next(pieces) == "never"
