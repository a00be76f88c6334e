"""Noise by tensor, against what comes out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import fx

from llmconv.bundle import TensorSpec
from llmconv.encodings import Encoding, Encodings
from llmconv.evaluation.precision import RoundingNoise, TensorNoise
from llmconv.graph import NAME


def node(name: str) -> fx.Node:
    made = fx.Graph().placeholder("x")
    made.meta[NAME] = name
    return made


def test_rounding_of_a_value_heads_together() -> None:
    encoding = Encoding(8, 1.0, 128)
    noise = RoundingNoise(Encodings({"a.h0": encoding, "a.h1": encoding, "b": encoding}))
    noise.observe(node("a.h0"), torch.tensor([3.5, 4.0]))  # to 4 (half to even) and 4
    noise.observe(node("a.h1"), torch.tensor([0.25, 300.0]))  # to 0, and to 127, the end of the range
    noise.observe(node("b"), torch.tensor([5.0]))
    noise.observe(node("without"), torch.tensor([0.1]))
    signal, lost = 3.5**2 + 16 + 0.25**2 + 300.0**2, 0.25 + 0.25**2 + 173.0**2
    assert noise.ratios() == {"a": pytest.approx(10 * math.log10(signal / lost)), "b": None}


def test_integers_of_two_runs_about_their_zero_point() -> None:
    spec = TensorSpec("k", (2,), "uint8", "new_key", 0, None, None, {"bits": 8, "scale": 0.1, "zero_point": 128})
    noise = TensorNoise({"k": spec})
    for _ in range(2):
        noise.compare({"k": np.array([138, 128], np.uint8)}, {"k": np.array([137, 128], np.uint8)})
    assert noise.ratios() == {"k": pytest.approx(20.0)}  # 10² over 1², twice
