"""GPTQ: round column by column, and let the columns to come make good what rounding did to the output."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmconv import PassError
from llmconv.encodings import Encoded, Grid, scales_along
from llmconv.quantization import DAMPING_LIMIT, Moments, Quantizer
from llmconv_plugins.quantizers.clipped import clipped_scales

LAZY = 256  # columns whose errors reach those behind them at once
PANEL = 16  # of those, columns whose errors reach the rest of them at once: few enough for a cache
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """Least squared error of a linear's outputs on calibration text, with the inputs that quantized weights give.

    Columns with the largest inputs come first; scales clip by least error, each column's counted by its inputs.

    Source: GPTQ (Frantar et al., 2022); toward the float model's outputs: GPTAQ (Li et al., 2025).

    Attributes:
        damping: of the mean of the moments' diagonal, added to it: less trusts the calibration text more.
        toward_float: from 0, toward what the weight gives on its inputs as they are, to 1, toward what it gives on the
            float model's; all of the way follows what is chance in the text.
    """

    name: ClassVar[str] = "gptq"
    needs_inputs: ClassVar[bool] = True

    damping: float = 0.05
    toward_float: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.damping <= DAMPING_LIMIT:
            raise PassError(f"gptq's damping is {self.damping}; choose one above 0, and at most {DAMPING_LIMIT}")
        if not 0 <= self.toward_float <= 1:
            raise PassError(f"gptq's toward_float is {self.toward_float}; choose one from 0 to 1")

    @property
    def needs_float(self) -> bool:
        """Where the option is not 0."""
        return self.toward_float != 0

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        """As `Quantizer.quantize`."""
        if inputs is None:
            raise PassError("gptq needs the inputs of the weight")
        factors = inputs.factors(self.damping)
        if factors is None:
            logger.warning("a linear whose inputs are all zero on calibration text is rounded to nearest")
            return grid.encode(weight, *clipped_scales(weight, grid, torch.ones(weight.shape[1])))
        if factors.toward_float is not None and self.toward_float:
            weight = torch.lerp(weight, weight @ factors.toward_float, self.toward_float)
        scale, zero_point, multipliers = clipped_scales(weight, grid, inputs.importance)
        steps = scales_along(scale, weight, multipliers).expand_as(weight)
        ints = _rounded(weight, steps, grid, factors.order, factors.upper)
        return Encoded(ints, scale, zero_point, grid, multipliers)


def _rounded(weight: Tensor, steps: Tensor, grid: Grid, order: Tensor, upper: Tensor) -> Tensor:
    """The integers of a weight, (rows, columns) int8.

    Args:
        steps: the scale of each number.
    """
    left = weight.T[order].contiguous()  # (columns, rows): a column lies in one piece
    step = steps.T[order].contiguous()
    ints, errors = torch.empty(left.shape, dtype=torch.int8), torch.empty(LAZY, left.shape[1])
    for start in range(0, len(left), LAZY):
        stop = min(start + LAZY, len(left))
        for first in range(start, stop, PANEL):
            last = min(first + PANEL, stop)
            for i in range(first, last):
                rounded = (left[i] / step[i]).round_().clamp_(grid.low, grid.top)
                ints[i] = rounded
                error = torch.addcmul(left[i], rounded, step[i], value=-1, out=errors[i - start])
                error.div_(upper[i, i])
                left[i + 1 : last].addr_(upper[i, i + 1 : last], error, alpha=-1)
            left[last:stop].addmm_(upper[first:last, last:stop].T, errors[first - start : last - start], alpha=-1)
        left[stop:].addmm_(upper[start:stop, stop:].T, errors[: stop - start], alpha=-1)
    found = torch.empty_like(ints)
    found[order] = ints
    return found.T.contiguous()
