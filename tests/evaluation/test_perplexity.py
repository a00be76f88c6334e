"""Perplexity, against what comes out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from llmconv.decoding import Arrays, Decoder
from llmconv.decoding.decoder import Tensor
from llmconv.evaluation.perplexity import ROWS, perplexity, surprises
from llmconv.graph import IO


class Table:
    """Gives each token the logits of its row; reads up to four tokens, without past."""

    name, ar, context = "g", 4, 4

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        self.rows = np.array(rows, dtype=np.float32)
        self.inputs: Mapping[str, Tensor] = {"ids": Tensor(IO("input_ids"), (1, 4))}
        self.outputs: Mapping[str, Tensor] = {"logits": Tensor(IO("logits"), (1, 4, self.rows.shape[1]))}

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        return {"logits": self.rows[inputs["ids"]]}


class Past(Table):
    """The same two tokens at a time, with a past of six."""

    ar, context = 2, 8

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        super().__init__(rows)
        self.inputs = {"ids": Tensor(IO("input_ids"), (1, 2)), "past": Tensor(IO("past_key", 0, 0, 3), (1, 1, 1, 6))}
        self.outputs = {**self.outputs, "key": Tensor(IO("new_key", 0, 0, 3), (1, 1, 1, 2))}
        self.runs = 0

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        self.runs += 1
        return {**super().run(inputs), "key": np.zeros((1, 1, 1, 2), np.float32)}


def of(rows: Sequence[Sequence[float]], windows: Sequence[Sequence[int]]) -> float:
    return perplexity(Decoder([Table(rows)], None), windows)


@pytest.mark.parametrize("level", [0.0, 1000.0])  # softmax does not see the level, and exp(1000) must not overflow
def test_even_logits_give_the_size_of_the_vocabulary(level: float) -> None:
    assert of([[level] * 5] * 5, [[0, 1, 2, 3]]) == pytest.approx(5.0)


def test_two_tokens_by_hand() -> None:
    """After 0, token 1 has probability 3/4; after 1, token 0 has 1/2."""
    rows = [[0.0, math.log(3)], [0.0, 0.0]]
    assert of(rows, [[0, 1, 0]]) == pytest.approx(1 / math.sqrt(3 / 4 * 1 / 2))


def test_windows_are_weighed_by_their_tokens_and_start_anew() -> None:
    rows = [[0.0, math.log(3)], [0.0, 0.0]]
    expected = math.exp(-(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 3)
    assert of(rows, [[0, 1, 0], [0, 0]]) == pytest.approx(expected)


@pytest.mark.parametrize(("tokens", "runs"), [(2, 1), (3, 1), (4, 2), (7, 3), (8, 4)])
def test_runs_of_a_window_count_as_one_text(tokens: int, runs: int) -> None:
    draw = np.random.default_rng(0)
    rows, window = draw.normal(size=(5, 5)).tolist(), draw.integers(0, 5, tokens).tolist()
    past = Past(rows)
    expected = np.exp(surprises(np.array(rows, np.float32)[window], window).mean())
    assert perplexity(Decoder([past], None), [window]) == pytest.approx(expected)
    assert past.runs == runs  # nothing follows the last token


def test_certain_text_has_perplexity_one() -> None:
    assert of([[0.0, 100.0], [100.0, 0.0]], [[0, 1, 0, 1]]) == pytest.approx(1.0)


@pytest.mark.parametrize("tokens", [2, ROWS, ROWS + 1, ROWS + 2, 3 * ROWS])
def test_each_token_is_judged_by_the_row_before_it(tokens: int) -> None:
    draw = np.random.default_rng(0)
    logits, window = draw.normal(size=(tokens, 7)).astype(np.float32), draw.integers(0, 7, tokens).tolist()
    exact = logits.astype(np.float64)
    expected = [math.log(np.exp(row).sum()) - row[i] for row, i in zip(exact[:-1], window[1:], strict=True)]
    assert surprises(logits, window) == pytest.approx(expected)
