"""What is on its grid already, where a quantizer is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmconv.encodings.grid import Encoded, Grid
from llmconv.quantization.encoded_tensors import tensors_of
from llmconv.quantization.moments import Moments
from llmconv.quantization.quantizer import Quantizer
from llmconv.weights.expressions import Held


@dataclass(frozen=True)
class Known(Quantizer):
    """What is on its grid already."""

    name: ClassVar[str] = "known"

    encoded: Encoded

    def __repr__(self) -> str:
        """With all of its numbers, since steps are known by it."""
        tensors = tensors_of({self.name: self.encoded})
        return f"Known({', '.join(f'{name}: {Held(x)}' for name, x in tensors.items())})"

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        """As it is."""
        return self.encoded
