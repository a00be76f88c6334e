"""Weights on their grids, against what the grids promise of every number."""

from __future__ import annotations

import pytest
import torch

from llmconv.encodings import Encoding, Grid, PerRow, WeightEncoding
from llmconv.quantization import nearest

FLOAT32 = 1e-5  # relative; rounding of a product of two float32


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoded(weight: torch.Tensor, how: WeightEncoding) -> tuple[torch.Tensor, torch.Tensor, int, Grid]:
    found = nearest(weight, how)
    return found.ints, found.scale, found.zero_point, found.grid


def rounded(weight: torch.Tensor, how: WeightEncoding) -> torch.Tensor:
    return nearest(weight, how).dequantize()


def test_grids_hold_what_their_bits_say() -> None:
    assert (Grid(4, PerRow()).low, Grid(4, PerRow()).top) == (-8, 7)
    assert (Grid(16, symmetric=False).low, Grid(16, symmetric=False).top) == (0, 65535)
    assert [nearest(numbers(2, 2), WeightEncoding(bits)).grid for bits in (8, 16)] == [
        Grid(8, PerRow()),
        Grid(16, symmetric=False),
    ]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_have_scales_of_their_own(bits: int, clip: bool) -> None:
    weight = numbers(3, 16) * torch.tensor([[1.0], [100.0], [0.01]])
    ints, scale, zero_point, _ = encoded(weight, WeightEncoding(bits, clip))
    assert (ints.dtype, ints.shape, scale.shape, zero_point) == (torch.int8, weight.shape, (3,), 0)
    assert ints.min() >= -(2 ** (bits - 1))
    assert ints.max() <= 2 ** (bits - 1) - 1
    for row in range(3):
        alone, alone_scale, _, _ = encoded(weight[row : row + 1], WeightEncoding(bits, clip))
        assert torch.equal(alone[0], ints[row])
        assert alone_scale.item() == scale[row].item()


@pytest.mark.parametrize("bits", [4, 8])
def test_without_clip_the_largest_weight_is_the_top(bits: int) -> None:
    weight, top = numbers(5, 16), 2 ** (bits - 1) - 1
    ints, scale, _, _ = encoded(weight, WeightEncoding(bits, clip=False))
    assert ints.abs().amax(dim=1).tolist() == [top] * 5
    assert torch.allclose(scale, weight.abs().amax(dim=1) / top, rtol=FLOAT32)
    error = (rounded(weight, WeightEncoding(bits, clip=False)) - weight).abs()
    assert (error <= scale[:, None] * (0.5 + FLOAT32)).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [4, 8])
def test_clip_never_costs(bits: int, seed: int) -> None:
    weight = numbers(20, 32, seed=seed) ** 3  # long tails, so that clipping pays
    errors = [(rounded(weight, WeightEncoding(bits, clip)) - weight).square().sum(dim=1) for clip in (True, False)]
    assert (errors[0] <= errors[1]).all()
    if bits == 4:
        assert (errors[0] < errors[1]).any()


def test_clipped_row_uses_the_most_negative_integer() -> None:
    weight = torch.tensor([[-8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    ints, _, _, _ = encoded(weight, WeightEncoding(4, clip=True))
    assert ints.min().item() == -8


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_row_of_zeros(bits: int, clip: bool) -> None:
    weight = torch.stack([torch.zeros(8), numbers(8)])
    encoding = WeightEncoding(bits, clip)
    ints, scale, _, _ = encoded(weight, encoding)
    assert ints[0].tolist() == [0] * 8
    assert (scale > 0).all()
    assert rounded(weight, encoding)[0].tolist() == [0.0] * 8


def test_weights_of_any_rank_are_scaled_along_rows() -> None:
    weight = numbers(4, 6)
    wide = rounded(weight.reshape(4, 6, 1, 1), WeightEncoding(4))
    assert torch.equal(wide.reshape(4, 6), rounded(weight, WeightEncoding(4)))


def test_16_bits_are_per_tensor_and_affine() -> None:
    weight = numbers(4, 8) + 3
    encoding = WeightEncoding(16)
    ints, scale, zero_point, _ = encoded(weight, encoding)
    expected = Encoding.from_range(weight.min().item(), weight.max().item(), 16)
    assert (scale.tolist(), zero_point) == ([expected.scale], expected.zero_point)
    assert (ints.min() >= 0) & (ints.max() <= 65535)
    assert torch.equal(rounded(weight, encoding), expected.fake_quantize(weight))


def test_16_bits_may_be_fixed_beforehand() -> None:
    fixed = Encoding.from_range(-8.0, 8.0, 16)
    _, scale, zero_point, _ = encoded(numbers(4, 8), WeightEncoding(16, encoding=fixed))
    assert (scale.item(), zero_point) == (fixed.scale, fixed.zero_point)
