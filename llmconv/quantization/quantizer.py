"""What puts a weight on its grid: a plugin that recipes name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmconv.encodings.grid import Encoded, Grid
from llmconv.quantization.moments import Moments
from llmconv.weights.store import WeightStore


@dataclass(frozen=True)
class Quantizer(ABC):
    """Chooses the integers and scales of one weight. A subclass is a frozen dataclass; its fields are options.

    Attributes:
        name: the recipe's name of the quantizer.
        needs_inputs: whether it looks at what the weight is multiplied with on calibration text.
    """

    name: ClassVar[str]
    needs_inputs: ClassVar[bool] = False

    @property
    def needs_float(self) -> bool:
        """Whether it also looks at what the float model would multiply the weight with."""
        return False

    @property
    def needs_products(self) -> bool:
        """Whether it looks at products of any two columns, a square of numbers, and not at `importance` alone."""
        return True

    def of_weight(self, name: str, weights: WeightStore, grid: Grid) -> Quantizer:
        """The quantizer of one weight: another for those that look at more of it than its numbers."""
        return self

    @abstractmethod
    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        """The weight on its grid, each row on its own.

        Args:
            weight: (rows, columns) float32; its rows are outputs.
            grid: symmetric, with a scale for each row or block.
            inputs: of the weight, where the quantizer needs them; the weights before it are quantized already.
        """
