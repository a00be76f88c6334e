"""Where a range ends, by histograms, against what comes out by trying."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, fx

from llmconv.encodings import Encoding
from llmconv.graph import NAME
from llmconv.quantization import Magnitudes
from llmconv.quantization.magnitudes import BINS

FINE = 2 / BINS  # of the largest number: bins are as wide where it lies just beyond a power of two


def drawn(seed: int, scale: float = 1.0, count: int = 20_000) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale


def end(rule: str, *values: Tensor, bits: int = 8) -> float:
    found = Magnitudes()
    for value in values:
        found.add("x", value)
    return found.end(["x"], max(float(v.abs().max()) for v in values), bits, rule)  # type: ignore[arg-type]


def error(x: Tensor, end: float, bits: int) -> float:
    rounded = Encoding.from_range(-end, end, bits, symmetric=True).fake_quantize(x.clone())
    return float((rounded - x).square().sum())


def test_the_range_ends_at_the_largest_number() -> None:
    x = drawn(0)
    assert end("min-max", x) == float(x.abs().max())


def test_a_few_numbers_lie_beyond_a_percentile() -> None:
    x = drawn(0, count=100_000)
    found = end("percentile", x)
    assert (x.abs() > found).sum() <= 10 < (x.abs() > found - 2 * FINE * float(x.abs().max())).sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tail", [1.0, 4.0, 40.0])
def test_the_least_squared_error_is_that_of_trying(bits: int, tail: float) -> None:
    x = torch.cat([drawn(0), drawn(1, tail, count=20)])
    largest = float(x.abs().max())
    tried = {ratio: error(x, largest * ratio, bits) for ratio in torch.linspace(1, 0.3, 141).tolist()}
    found = error(x, end("mse", x, bits=bits), bits)
    assert found <= 1.02 * min(tried.values())
    assert found <= tried[1.0]
    if (bits, tail) == (4, 1.0):
        assert found < 0.8 * tried[1.0]  # which clips


def test_numbers_that_grow_are_counted_as_if_they_had_come_at_once() -> None:
    parts = [drawn(i, 4.0**i) for i in range(4)]
    for rule in ("percentile", "mse"):
        whole = end(rule, torch.cat(parts), bits=4)
        assert end(rule, *parts, bits=4) == pytest.approx(whole, rel=4 * FINE)
        assert end(rule, *parts[::-1], bits=4) == whole


def test_values_that_share_a_range_are_taken_together() -> None:
    apart = Magnitudes()
    apart.add("a", drawn(0))
    apart.add("b", drawn(1, 30.0))
    both = torch.cat([drawn(0), drawn(1, 30.0)])
    largest = float(both.abs().max())
    assert apart.end(["a", "b", "unknown"], largest, 4, "mse") == pytest.approx(end("mse", both, bits=4), rel=4 * FINE)
    assert apart.end(["unknown"], 3.0, 8, "mse") == 3.0


def test_another_run_goes_on_with_them() -> None:
    first, second = Magnitudes(), Magnitudes()
    first.add("x", drawn(0))
    second.update(json.loads(json.dumps(first.to_dict())))
    for found in (first, second):
        found.add("x", drawn(1, 5.0))
    assert second.to_dict() == first.to_dict()


def test_zeros_have_a_range() -> None:
    assert end("mse", torch.zeros(8)) == 0.0


def test_values_are_looked_at_by_name() -> None:
    found = Magnitudes(["x"])
    for name in ("x", "y"):
        node = fx.Graph().placeholder(name)
        node.meta[NAME] = name
        found.observe(node, torch.ones(2))
    assert list(found.to_dict()) == ["x"]
