"""Encodings: the scale, zero point, bit width and granularity of values and weights, kept beside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from llmconv.encodings.grid import Encoded, Grid, PerBlock, PerRow, to_floats, to_integers

if TYPE_CHECKING:  # as in grid.py
    import torch

FEW = 1 << 14  # numbers that are clamped to bounds of their own in one op; more are clamped faster bound by bound


@dataclass(frozen=True)
class Encoding:
    """An affine encoding of one value, per tensor: real = (integer - zero_point) * scale.

    Attributes:
        signed: whether its integers are; only symmetric ones of 16 bits are, whose zero point is 0 then. The HTP
            multiplies uint16 by int16 in full, and of uint16 by uint16 takes the upper 8 bits of the second.
    """

    bits: int
    scale: float
    zero_point: int
    signed: bool = False

    @classmethod
    def from_range(cls, low: float, high: float, bits: int, symmetric: bool = False) -> Encoding:
        """The encoding that holds [low, high] and zero; a symmetric one has its zero point in the middle, and
        is signed at 16 bits.

        The scale is rounded to float32 first, because that is what every runtime reads.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        top = 2**bits - 1
        if symmetric:
            scale = _float32(max(-low, high) / (2 ** (bits - 1) - 1)) or 1.0
            return cls(bits, scale, 0, signed=True) if bits == 16 else cls(bits, scale, 2 ** (bits - 1))
        scale = _float32((high - low) / top) or _float32(1.0 / top)  # a range too narrow for float32 has none
        return cls(bits, scale, min(top, max(0, round(-low / scale))))

    @cached_property
    def grid(self) -> Grid:
        """The grid of its integers."""
        return Grid(self.bits, symmetric=self.signed)

    @property
    def dtype(self) -> str:
        """The integer type, `uint8`, `uint16` or `int16`."""
        return f"{'' if self.signed else 'u'}int{self.bits}"

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Integers of a float tensor, as int32; rounds half to even as ONNX does."""
        return to_integers(x, self.scale, self.zero_point, self.grid.low, self.grid.top).int()

    def dequantize(self, x: torch.Tensor) -> torch.Tensor:
        """Floats of integers."""
        return to_floats(x, self.scale, self.zero_point)

    def fake_quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Round a float tensor to the encoding's grid: as `dequantize(quantize(x))`, without the integers between."""
        low, top = self.ends
        return (x / self.scale).round_().clamp_(low, top).mul_(self.scale)

    @cached_property
    def ends(self) -> tuple[int, int]:
        """The smallest and the largest number, in steps from zero."""
        return self.grid.low - self.zero_point, self.grid.top - self.zero_point

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        found = {"bits": self.bits, "scale": self.scale, "zero_point": self.zero_point}
        return found | ({"signed": True} if self.signed else {})


class Rounding:
    """Rounds values to the grids of their encodings as `Encoding.fake_quantize` does, with what it takes at hand.

    Args:
        encodings: of values that are one tensor, joined along dimension 0.
        shape: of each of them.
    """

    def __init__(self, encodings: Sequence[Encoding], shape: Sequence[int]) -> None:
        import torch  # noqa: PLC0415  as above

        def along(numbers: Sequence[float]) -> torch.Tensor:
            if len(encodings) == 1:
                return torch.tensor(numbers[0], dtype=torch.float32)
            rows = torch.tensor(numbers, dtype=torch.float32).repeat_interleave(shape[0])
            return rows.reshape(-1, *[1] * (len(shape) - 1))

        self._ends = [e.ends for e in encodings]
        self._alike = len(set(self._ends)) == 1
        self._scale = along([e.scale for e in encodings])
        self._low, self._top = (along(ends) for ends in zip(*self._ends, strict=True))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The values, rounded."""
        scale = self._scale
        steps = (x / scale).round_()
        if self._alike:
            return steps.clamp_(*self._ends[0]).mul_(scale)
        if x.numel() > FEW:
            for part, ends in zip(steps.chunk(len(self._ends)), self._ends, strict=True):
                part.clamp_(*ends)
        else:
            steps.clamp_min_(self._low).clamp_max_(self._top)
        return steps.mul_(scale)


def _float32(x: float) -> float:
    return float(np.float32(x))


@dataclass(frozen=True)
class WeightEncoding:
    """The grid of a weight; its scales are the weight's own, and a quantizer's (`llmconv.quantization`) to choose.

    Attributes:
        bits: 4 or 8: symmetric signed, one scale per row. 16: unsigned affine, per tensor.
        block: columns of a block with a multiplier of the row's scale; 0 where rows are not cut.
        encoding: for 16 bits, an encoding fixed beforehand (an embedding table shares its Gather's).
    """

    bits: int
    block: int = 0
    encoding: Encoding | None = None

    @property
    def width(self) -> float:
        """Bits that an element takes, those of its block's multiplier counted; a row's scale is not."""
        return self.bits + (8 / self.block if self.block else 0)

    @property
    def per_row(self) -> bool:
        """Whether each row has a scale of its own."""
        return self.bits < 16

    @property
    def grid(self) -> Grid:
        """The grid of its integers."""
        if not self.per_row:
            return Grid(self.bits, symmetric=False)
        return Grid(self.bits, PerBlock(self.block) if self.block else PerRow())


@dataclass
class Encodings:
    """The encodings of a model's values and weights, by structural name; every graph shares them.

    Attributes:
        quantized: weights that a quantizer has put on their grids while nothing took them to a file.
        kept: weights whose integers are the checkpoint's own.
    """

    values: dict[str, Encoding] = field(default_factory=dict)
    weights: dict[str, WeightEncoding] = field(default_factory=dict)
    quantized: dict[str, Encoded] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
