"""Noise of rounded values, against what comes out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import fx

from llmconv.encodings import Encoding, Encodings
from llmconv.evaluation.rounding import RoundingNoise
from llmconv.graph import NAME


def node(name: str) -> fx.Node:
    made = fx.Graph().placeholder("x")
    made.meta[NAME] = name
    return made


def test_rounding_of_a_value_heads_together() -> None:
    encoding = Encoding(8, 1.0, 128)
    rounding = RoundingNoise(Encodings({"a.h0": encoding, "a.h1": encoding, "b": encoding}))
    rounding.observe(node("a.h0"), torch.tensor([3.5, 4.0]))  # to 4 (half to even) and 4
    rounding.observe(node("a.h1"), torch.tensor([0.25, 300.0]))  # to 0, and to 127, the end of the range
    rounding.observe(node("b"), torch.tensor([5.0]))
    rounding.observe(node("without"), torch.tensor([0.1]))
    signal, lost = 3.5**2 + 16 + 0.25**2 + 300.0**2, 0.25 + 0.25**2 + 173.0**2
    found = {name: noise.decibels for name, noise in rounding.noise.items()}
    assert found == {"a": pytest.approx(10 * math.log10(signal / lost)), "b": None}


def test_numbers_beyond_a_range_are_counted() -> None:
    encoding = Encoding(8, 0.1, 128)  # from -12.8 to 12.7
    rounding = RoundingNoise(Encodings({"a": encoding, "b.h0": encoding, "b.h1": encoding}))
    rounding.observe(node("a"), torch.tensor([-12.8, 12.7, 12.7499, 0.05]))
    assert rounding.clipped == {}
    rounding.observe(node("a"), torch.tensor([12.8, -40.0, 1.0, 2.0]))
    rounding.observe(node("b.h0"), torch.tensor([13.0, 13.0]))
    rounding.observe(node("b.h1"), torch.tensor([0.0, 13.0]))
    assert rounding.clipped == {"b": 0.75, "a": 0.25}
