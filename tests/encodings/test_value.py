"""Encodings of values and weights, against what they promise of every number."""

from __future__ import annotations

import pytest
import torch

from llmconv.encodings import Encoding

KINDS = [(8, False), (8, True), (16, False), (16, True)]  # bits, symmetric
RANGES = [(-1.0, 1.0), (-3.7, 0.2), (0.0, 5.0), (2.0, 5.0), (-7.0, -3.0), (-1e-6, 1e4)]
FLOAT32 = 1e-5  # relative; rounding of a product of two float32


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_range_is_held_within_half_a_step(low: float, high: float, bits: int, symmetric: bool) -> None:
    encoding = Encoding.from_range(low, high, bits, symmetric)
    assert 0 <= encoding.zero_point < 2**bits
    x = torch.linspace(low, high, 1001)
    error = (encoding.fake_quantize(x) - x).abs().max().item()
    assert error <= encoding.scale * (0.5 + 0.5) + FLOAT32 * max(abs(low), abs(high))  # the zero point rounds as well


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_zero_stays_zero(low: float, high: float, bits: int, symmetric: bool) -> None:
    assert Encoding.from_range(low, high, bits, symmetric).fake_quantize(torch.zeros(1)).item() == 0.0


@pytest.mark.parametrize(("bits", "dtype", "middle"), [(8, "uint8", 128), (16, "int16", 0)])
def test_symmetric_zero_point_is_the_middle(bits: int, dtype: str, middle: int) -> None:
    encoding = Encoding.from_range(-3.0, 1.0, bits, symmetric=True)
    assert (encoding.zero_point, encoding.dtype) == (middle, dtype)
    steps = 2 ** (bits - 1) - 1  # on either side of it
    assert encoding.scale == pytest.approx(3.0 / steps, rel=FLOAT32)
    assert encoding.quantize(torch.tensor([-3.0, 3.0])).tolist() == [middle - steps, middle + steps]
    assert Encoding(**encoding.to_dict()) == encoding


def test_asymmetric_by_hand() -> None:
    encoding = Encoding.from_range(-1.0, 254.0, 8)
    assert encoding == Encoding(8, 1.0, 1)
    assert encoding.quantize(torch.tensor([-9.0, -1.0, 0.0, 254.0, 300.0])).tolist() == [0, 0, 1, 255, 255]
    assert encoding.dequantize(torch.tensor([0, 1, 255])).tolist() == [-1.0, 0.0, 254.0]
    assert encoding.to_dict() == {"bits": 8, "scale": 1.0, "zero_point": 1}
    assert (encoding.dtype, Encoding.from_range(0, 1, 16).dtype) == ("uint8", "uint16")


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.0, 1e-44), (-1e-44, 0.0)])
def test_range_without_width(low: float, high: float, bits: int, symmetric: bool) -> None:
    encoding = Encoding.from_range(low, high, bits, symmetric)
    assert encoding.scale > 0
    assert encoding.fake_quantize(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [3.5, -3.5])
def test_single_number_is_held(value: float) -> None:
    assert Encoding.from_range(value, value, 16).fake_quantize(torch.tensor(value)).item() == pytest.approx(value)


def test_halves_round_to_even() -> None:
    encoding = Encoding(8, 1.0, 0)
    assert encoding.quantize(torch.tensor([0.5, 1.5, 2.5, 3.5])).tolist() == [0, 2, 2, 4]


def test_scale_is_a_float32() -> None:
    encoding = Encoding.from_range(-0.1, 0.7, 16)
    assert torch.tensor(encoding.scale, dtype=torch.float32).item() == encoding.scale


@pytest.mark.parametrize("bits", [8, 16])
def test_fake_quantize_twice_is_once(bits: int) -> None:
    encoding = Encoding.from_range(-3.0, 2.0, bits)
    once = encoding.fake_quantize(numbers(1000))
    assert torch.equal(encoding.fake_quantize(once), once)
