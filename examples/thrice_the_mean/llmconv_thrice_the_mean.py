"""A quantizer: rows are clipped where they are far from their mean."""

from dataclasses import dataclass

from torch import Tensor

from llmconv import hookimpl
from llmconv.encodings import Encoded, Grid
from llmconv.quantization import Moments, Quantizer


@dataclass(frozen=True)
class ThriceTheMean(Quantizer):
    """Rounds to nearest, and clips a row at so many times its mean magnitude."""

    name = "thrice_the_mean"

    times: float = 3.0

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        return grid.encode(weight, self.times * weight.abs().mean(dim=1) / grid.top)


@hookimpl
def register_quantizers() -> list[type[Quantizer]]:
    return [ThriceTheMean]
