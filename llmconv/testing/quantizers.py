"""Try a quantizer on a random weight: what must hold of integers and scales, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmconv.encodings.grid import Encoded, Grid, PerRow
from llmconv.encodings.noise import Noise
from llmconv.errors import PluginError
from llmconv.plugins.frame import given, plugin_code
from llmconv.quantization.moments import Moments
from llmconv.quantization.nearest import Nearest
from llmconv.quantization.quantizer import Quantizer

ROWS, COLUMNS, TOKENS = 24, 64, 256


@dataclass(frozen=True)
class QuantizerTrial:
    """What a quantizer made of a weight.

    Attributes:
        encoded: the weight on its grid.
        sqnr: of what the weight gives on the inputs, over what rounding adds to that; dB.
        nearest: the same of rounding to nearest.
    """

    encoded: Encoded
    sqnr: float
    nearest: float


def try_quantizer(
    quantizer: Quantizer, grid: Grid | None = None, weight: torch.Tensor | None = None, *, seed: int = 0
) -> QuantizerTrial:
    """Quantize a weight, and look at what came out.

    Args:
        grid: symmetric; by default 4 bits with a scale for each row.
        weight: (rows, columns) float32; by default 24 × 64 random numbers.
        seed: of the weight, and of the 256 tokens that it is multiplied with, some columns of which are larger.

    Raises:
        PluginError: integers are outside the grid, scales are not above 0, a row depends on another, or a second run
            gives something else.
    """
    grid, generator = grid or Grid(4, PerRow()), torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=generator) if weight is None else weight
    columns = weight.shape[1]
    x = torch.randn(TOKENS, columns, generator=generator) * torch.linspace(0.1, 3, columns)
    encoded = _quantized(quantizer, weight, grid, x)
    _check(quantizer, encoded, weight, grid)
    half = len(weight) // 2
    for rows, what in (
        (slice(None), "a second run"),
        (slice(half), "half of the rows"),
        (slice(half, None), "the rest"),
    ):
        other = _quantized(quantizer, weight[rows], grid, x)
        if not torch.equal(other.ints, encoded.ints[rows]):
            raise PluginError(f"quantizer '{quantizer.name}': {what} gives other integers; treat each row by itself")
    return QuantizerTrial(encoded, _sqnr(weight, encoded, x), _sqnr(weight, _quantized(Nearest(), weight, grid, x), x))


def _quantized(quantizer: Quantizer, weight: torch.Tensor, grid: Grid, x: torch.Tensor) -> Encoded:
    moments = Moments(weight.shape[1], quantizer.needs_float)
    moments.add(x, x)
    doing = f"quantizer '{quantizer.name}'"
    with plugin_code(quantizer, doing):
        found = quantizer.quantize(weight.clone(), grid, moments if quantizer.needs_inputs else None)
    return given(quantizer, doing, found, Encoded)


def _check(quantizer: Quantizer, encoded: Encoded, weight: torch.Tensor, grid: Grid) -> None:
    said = f"quantizer '{quantizer.name}' gives"
    if encoded.ints.shape != weight.shape:
        raise PluginError(f"{said} {tuple(encoded.ints.shape)} integers for a weight of {tuple(weight.shape)}")
    low, top = int(encoded.ints.min()), int(encoded.ints.max())
    if low < grid.low or top > grid.top:
        raise PluginError(f"{said} integers from {low} to {top} on a grid from {grid.low} to {grid.top}")
    if encoded.scale.shape != (len(weight),) or not bool((encoded.scale > 0).all()):
        raise PluginError(f"{said} scales that are not {len(weight)} numbers above 0")


def _sqnr(weight: torch.Tensor, encoded: Encoded, x: torch.Tensor) -> float:
    return Noise().add((x @ weight.T).numpy(), (x @ encoded.dequantize().T).numpy()).sqnr
