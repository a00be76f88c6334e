"""Graphs of two contexts: a text that goes from one to the other reads as with those of the longer alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from llmconv import Bundle
from llmconv.decoding import Arrays, Decoder, Runner
from llmconv.encodings import Noise
from llmconv.runtimes.runtime import rope_table
from llmconv_plugins.runtimes.onnxruntime import OnnxRuntime

LONGEST = ("prompt128", "token128")
ROUNDED = 70.0  # dB: sums over 64 and over 128 positions, of which the others add nothing, differ in the last bit
TEXT = [1, *(300 + 7 * i % 200 for i in range(79))]  # beyond 64


class Counted:
    """A runner that tells how often it ran."""

    def __init__(self, runner: Runner, runs: Counter[str]) -> None:
        self.runner, self.runs = runner, runs
        self.name, self.ar, self.context = runner.name, runner.ar, runner.context
        self.inputs, self.outputs = runner.inputs, runner.outputs

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        self.runs[self.name] += 1
        return self.runner.run(inputs)


def logits(bundle: Bundle, graphs: Sequence[str] | None, chunks: Sequence[int]) -> tuple[np.ndarray, Counter[str]]:
    """Of the text, read in chunks of so many tokens, and which graphs ran."""
    runs: Counter[str] = Counter()
    with OnnxRuntime().open(bundle, graphs) as runners:
        decoder, at, rows = Decoder([Counted(r, runs) for r in runners], rope_table(bundle)), 0, []
        for chunk in chunks:
            rows.append(decoder.read(TEXT[at : at + chunk]))
            at += chunk
    return np.concatenate(rows), runs


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([80], {"prompt64": 4, "prompt128": 1}),
        ([60, *[1] * 10], {"prompt64": 4, "token64": 4, "token128": 6}),
    ],
    ids=["prompt", "writing"],
)
def test_the_other_context_makes_no_difference(
    small_contexts: Bundle, chunks: list[int], expected: dict[str, int]
) -> None:
    found, runs = logits(small_contexts, None, chunks)
    alone, _ = logits(small_contexts, LONGEST, chunks)
    assert runs == expected
    assert Noise().add(alone, found).sqnr > ROUNDED
