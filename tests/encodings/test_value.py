"""Encodings of values and weights, against what they promise of every number."""

from __future__ import annotations

import pytest
import torch

from llmconv.encodings import Encoding, WeightEncoding

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


@pytest.mark.parametrize(("bits", "middle"), [(8, 128), (16, 32768)])
def test_symmetric_zero_point_is_the_middle(bits: int, middle: int) -> None:
    encoding = Encoding.from_range(-3.0, 1.0, bits, symmetric=True)
    assert encoding.zero_point == middle
    assert encoding.scale == pytest.approx(3.0 / (middle - 1), rel=FLOAT32)
    assert encoding.quantize(torch.tensor([-3.0, 3.0])).tolist() == [1, 2 * middle - 1]


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


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_have_scales_of_their_own(bits: int, clip: bool) -> None:
    weight = numbers(3, 16) * torch.tensor([[1.0], [100.0], [0.01]])
    ints, scale, zero_point = WeightEncoding(bits, clip).quantize(weight)
    assert (ints.dtype, ints.shape, scale.shape, zero_point) == (torch.int8, weight.shape, (3,), 0)
    assert ints.min() >= -(2 ** (bits - 1))
    assert ints.max() <= 2 ** (bits - 1) - 1
    for row in range(3):
        alone, alone_scale, _ = WeightEncoding(bits, clip).quantize(weight[row : row + 1])
        assert torch.equal(alone[0], ints[row])
        assert alone_scale.item() == scale[row].item()


@pytest.mark.parametrize("bits", [4, 8])
def test_without_clip_the_largest_weight_is_the_top(bits: int) -> None:
    weight, top = numbers(5, 16), 2 ** (bits - 1) - 1
    ints, scale, _ = WeightEncoding(bits, clip=False).quantize(weight)
    assert ints.abs().amax(dim=1).tolist() == [top] * 5
    assert torch.allclose(scale, weight.abs().amax(dim=1) / top, rtol=FLOAT32)
    error = (WeightEncoding(bits, clip=False).fake_quantize(weight) - weight).abs()
    assert (error <= scale[:, None] * (0.5 + FLOAT32)).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [4, 8])
def test_clip_never_costs(bits: int, seed: int) -> None:
    weight = numbers(20, 32, seed=seed) ** 3  # long tails, so that clipping pays
    errors = [(WeightEncoding(bits, clip).fake_quantize(weight) - weight).square().sum(dim=1) for clip in (True, False)]
    assert (errors[0] <= errors[1]).all()
    if bits == 4:
        assert (errors[0] < errors[1]).any()


def test_clipped_row_uses_the_most_negative_integer() -> None:
    weight = torch.tensor([[-8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    ints, _, _ = WeightEncoding(4).quantize(weight)
    assert ints.min().item() == -8


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_row_of_zeros(bits: int, clip: bool) -> None:
    weight = torch.stack([torch.zeros(8), numbers(8)])
    encoding = WeightEncoding(bits, clip)
    ints, scale, _ = encoding.quantize(weight)
    assert ints[0].tolist() == [0] * 8
    assert (scale > 0).all()
    assert encoding.fake_quantize(weight)[0].tolist() == [0.0] * 8


def test_weights_of_any_rank_are_scaled_along_rows() -> None:
    weight = numbers(4, 6)
    wide = WeightEncoding(4).fake_quantize(weight.reshape(4, 6, 1, 1))
    assert torch.equal(wide.reshape(4, 6), WeightEncoding(4).fake_quantize(weight))


def test_16_bits_are_per_tensor_and_affine() -> None:
    weight = numbers(4, 8) + 3
    encoding = WeightEncoding(16)
    ints, scale, zero_point = encoding.quantize(weight)
    expected = Encoding.from_range(weight.min().item(), weight.max().item(), 16)
    assert (scale.tolist(), zero_point) == ([expected.scale], expected.zero_point)
    assert (ints.min() >= 0) & (ints.max() <= 65535)
    assert torch.equal(encoding.fake_quantize(weight), expected.fake_quantize(weight))


def test_16_bits_may_be_fixed_beforehand() -> None:
    fixed = Encoding.from_range(-8.0, 8.0, 16)
    _, scale, zero_point = WeightEncoding(16, encoding=fixed).quantize(numbers(4, 8))
    assert (scale.item(), zero_point) == (fixed.scale, fixed.zero_point)
