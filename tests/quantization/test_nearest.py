"""Weights on their grids, against what the grids promise of every number."""

from __future__ import annotations

import pytest
import torch

from llmconv.encodings import MULTIPLIERS, Encoding, Grid, PerBlock, PerRow, WeightEncoding, scales_along
from llmconv.quantization import nearest, on_block_grid

FLOAT32 = 1e-5  # relative; rounding of a product of two float32
CEILING = 1e-4  # of a row's scale, which a block's may lack: 16.00001 of it is 16


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
    widths = (WeightEncoding(8), WeightEncoding(16), WeightEncoding(4, block=16))
    found = [nearest(numbers(2, 32), how).grid for how in widths]
    assert found == [Grid(8, PerRow()), Grid(16, symmetric=False), Grid(4, PerBlock(16))]


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_have_scales_of_their_own(bits: int, block: int) -> None:
    weight = numbers(3, 32) * torch.tensor([[1.0], [100.0], [0.01]])
    how = WeightEncoding(bits, block)
    ints, scale, zero_point, _ = encoded(weight, how)
    assert (ints.dtype, ints.shape, scale.shape, zero_point) == (torch.int8, weight.shape, (3,), 0)
    assert ints.min() >= -(2 ** (bits - 1))
    assert ints.max() <= 2 ** (bits - 1) - 1
    for row in range(3):
        alone, alone_scale, _, _ = encoded(weight[row : row + 1], how)
        assert torch.equal(alone[0], ints[row])
        assert alone_scale.item() == scale[row].item()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_weight_is_the_top(bits: int) -> None:
    weight, top = numbers(5, 16), 2 ** (bits - 1) - 1
    ints, scale, _, _ = encoded(weight, WeightEncoding(bits))
    assert ints.abs().amax(dim=1).tolist() == [top] * 5
    assert torch.allclose(scale, weight.abs().amax(dim=1) / top, rtol=FLOAT32)
    error = (rounded(weight, WeightEncoding(bits)) - weight).abs()
    assert (error <= scale[:, None] * (0.5 + FLOAT32)).all()


def test_blocks_have_multiples_of_the_row_s_scale_that_clip_nothing() -> None:
    weight = numbers(4, 64) * torch.tensor([1.0, 8.0, 0.001, 3.0]).repeat_interleave(16)
    found = nearest(weight, WeightEncoding(4, block=16))
    assert found.multipliers is not None
    assert (found.multipliers.dtype, found.multipliers.shape) == (torch.uint8, (4, 4))
    assert found.multipliers[:, 1].tolist() == [MULTIPLIERS] * 4  # the widest block
    assert found.multipliers[:, 2].tolist() == [1] * 4  # which wants less
    steps = scales_along(found.scale, weight, found.multipliers)
    assert steps.shape == weight.shape
    assert torch.equal(found.dequantize(), found.ints * steps)
    assert ((found.dequantize() - weight).abs() <= steps * (0.5 + 7 * CEILING)).all()
    finer = (found.dequantize() - weight).square().sum() / (rounded(weight, WeightEncoding(4)) - weight).square().sum()
    assert finer < 0.7  # blocks are there for that


def test_a_block_s_scale_is_the_least_multiple_that_is_enough() -> None:
    scale, zero_point, multipliers = on_block_grid(torch.tensor([[16.0, 15.9, 1.0, 0.1, 2.00001]]))
    assert (scale.tolist(), zero_point, multipliers.tolist()) == ([1.0], 0, [[16, 16, 1, 1, 2]])


def test_rows_of_one_in_blocks() -> None:
    found = nearest(numbers(6, 32), WeightEncoding(4, block=16))
    some = found.rows(2, 5)
    assert (some.grid, some.multipliers is not None) == (found.grid, True)
    assert torch.equal(some.dequantize(), found.dequantize()[2:5])


@pytest.mark.parametrize(("bits", "block"), [(4, 0), (8, 0), (4, 16)])
def test_row_of_zeros(bits: int, block: int) -> None:
    weight = torch.stack([torch.zeros(32), numbers(32)])
    encoding = WeightEncoding(bits, block)
    ints, scale, _, _ = encoded(weight, encoding)
    assert ints[0].tolist() == [0] * 32
    assert (scale > 0).all()
    assert rounded(weight, encoding)[0].tolist() == [0.0] * 32


@pytest.mark.parametrize("block", [0, 16])
def test_weights_of_any_rank_are_scaled_along_rows(block: int) -> None:
    weight = numbers(4, 32)
    wide = rounded(weight.reshape(4, 32, 1, 1), WeightEncoding(4, block))
    assert torch.equal(wide.reshape(4, 32), rounded(weight, WeightEncoding(4, block)))


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
