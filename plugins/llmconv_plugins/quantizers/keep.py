"""Keep the integers that a checkpoint has: somebody trained them, and rounding again would lose what that gained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from llmconv import PassError
from llmconv.encodings import Encoded, Grid
from llmconv.quantization import Moments, Quantizer
from llmconv.weights import Coded, WeightStore, coded_of


@dataclass(frozen=True)
class Keep(Quantizer):
    """The checkpoint's own integers and scales, as they are.

    Passes choose it for every weight whose stored integers lie on a grid of the bits that it is to have.
    """

    name: ClassVar[str] = "keep"

    weight: str = field(default="", init=False)
    coded: Coded | None = field(default=None, init=False, repr=False, compare=False)

    def of_weight(self, name: str, weights: WeightStore, grid: Grid) -> Keep:
        """As of `Quantizer`.

        Raises:
            PassError: the weight has no integers, or they do not lie on the grid.
        """
        found = coded_of(weights, name)
        if not isinstance(found, Coded):
            raise PassError(f"weight '{name}' cannot keep its integers: {found or 'the checkpoint has none of it'}")
        coded = next((c for c in found.smaller() if c.grid == grid), None)
        if coded is None:
            raise PassError(f"weight '{name}' cannot keep its integers: they lie on {found.grid}, not {grid}")
        made = Keep()
        object.__setattr__(made, "weight", name)
        object.__setattr__(made, "coded", coded)
        return made

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        """As `Quantizer.quantize`."""
        if self.coded is None:
            raise PassError("quantizer 'keep' has not been given a weight's integers")
        return self.coded.read()
