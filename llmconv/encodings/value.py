"""Encodings: the scale, zero point, bit width and granularity of values and weights, kept beside the graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Encoding:
    """An unsigned affine encoding of one value, per tensor: real = (integer - zero_point) * scale."""

    bits: int
    scale: float
    zero_point: int

    @classmethod
    def from_range(cls, low: float, high: float, bits: int, symmetric: bool = False) -> Encoding:
        """The encoding that holds [low, high] and zero; a symmetric one has its zero point in the middle.

        The scale is rounded to float32 first, because that is what every runtime reads.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        top = 2**bits - 1
        if symmetric:
            scale = _float32(max(-low, high) / (2 ** (bits - 1) - 1)) or 1.0
            return cls(bits, scale, 2 ** (bits - 1))
        scale = _float32((high - low) / top) or _float32(1.0 / top)  # a range too narrow for float32 has none
        return cls(bits, scale, min(top, max(0, round(-low / scale))))

    @property
    def dtype(self) -> str:
        """The integer type, `uint8` or `uint16`."""
        return f"uint{self.bits}"

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Integers of a float tensor, as int32; rounds half to even as ONNX does."""
        return torch.clamp(torch.round(x / self.scale) + self.zero_point, 0, 2**self.bits - 1).to(torch.int32)

    def dequantize(self, x: torch.Tensor) -> torch.Tensor:
        """Floats of integers."""
        return (x.to(torch.float32) - self.zero_point) * self.scale

    def fake_quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Round a float tensor to the encoding's grid."""
        return self.dequantize(self.quantize(x))

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {"bits": self.bits, "scale": self.scale, "zero_point": self.zero_point}


def _float32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


@dataclass(frozen=True)
class WeightEncoding:
    """How a weight is quantized when it is read; its scales come out of the same read.

    Attributes:
        bits: 4 or 8: symmetric signed, one scale per row. 16: unsigned affine, per tensor.
        clip: whether the row scale minimizes the squared error over clipping ratios (else absolute maximum).
        encoding: for 16 bits, an encoding fixed beforehand (an embedding table shares its Gather's).
    """

    bits: int
    clip: bool = False
    encoding: Encoding | None = None

    @property
    def per_row(self) -> bool:
        """Whether each row has a scale of its own."""
        return self.bits < 16

    def quantize(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Integers (int8, or int32 for 16 bits), scales (rows,) or (1,) float32, and the zero point."""
        if not self.per_row:
            encoding = self.encoding or self.of(weight)
            return encoding.quantize(weight), torch.tensor([encoding.scale]), encoding.zero_point
        top = 2 ** (self.bits - 1) - 1
        flat = weight.reshape(weight.shape[0], -1)
        scale = (flat.abs().amax(dim=1) / top).clamp_min_(torch.finfo(torch.float32).tiny)  # aminmax is 3 times slower
        if self.clip:
            scale = _clip(flat, scale, top)
        ints = (flat / scale[:, None]).round_().clamp_(-top - 1, top).to(torch.int8)
        return ints.reshape(weight.shape), scale, 0

    def of(self, weight: torch.Tensor) -> Encoding:
        """The encoding of a whole weight of 16 bits."""
        low, high = torch.aminmax(weight)
        return Encoding.from_range(float(low), float(high), self.bits)

    def fake_quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Round a weight to its grid."""
        ints, scale, zero_point = self.quantize(weight)
        per_row = scale.reshape(-1, *[1] * (weight.ndim - 1)) if self.per_row else scale
        return (ints.to(torch.float32) - zero_point) * per_row


def _clip(flat: torch.Tensor, scale: torch.Tensor, top: int) -> torch.Tensor:
    """Per row, of 21 clipping ratios from 1.0 down to 0.6 the one with the least squared error."""
    best_scale, best_error = scale, torch.full_like(scale, float("inf"))
    for ratio in torch.linspace(1.0, 0.6, 21):
        trial = scale * ratio
        rounded = torch.clamp(torch.round(flat / trial[:, None]), -top - 1, top) * trial[:, None]
        error = (flat - rounded).square().sum(dim=1)
        better = error < best_error
        best_scale, best_error = torch.where(better, trial, best_scale), torch.where(better, error, best_error)
    return best_scale


@dataclass
class Encodings:
    """The encodings of a model's values and weights, by structural name; every graph shares them."""

    values: dict[str, Encoding] = field(default_factory=dict)
    weights: dict[str, WeightEncoding] = field(default_factory=dict)
