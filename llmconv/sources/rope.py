"""RoPE's tables of cos and sin, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from llmconv.encodings import Encoding

TOLERANCE = 1e-3  # of a cosine; float32 angles at position 4096 are off by less


@dataclass(frozen=True)
class Rope:
    """One table: at position p, cos and sin of p times each frequency, times `factor`.

    Attributes:
        theta: the base; the frequencies of plain RoPE are theta ** (-2i / width).
        frequencies: of each pair of channels that is turned, in radians a position; half as many as `width`.
        factor: of cos and sin.
    """

    theta: float
    frequencies: tuple[float, ...]
    factor: float = 1.0

    @classmethod
    def plain(cls, theta: float, width: int) -> Rope:
        """Of so many channels of a head, not stretched."""
        import torch  # noqa: PLC0415  which showing a bundle does not need

        exponents = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width  # as in transformers
        return cls(theta, tuple((theta**-exponents).tolist()))

    def filled(self, rows: int, encoding: Encoding | None) -> tuple[Tensor, Tensor]:
        """Cos and sin at so many positions, (rows, width / 2) each, float32, as Genie fills them on a phone.

        It computes in double precision, from powers of the base where nothing is stretched, and cuts to the grid where
        one would round: half of the numbers are a step lower. Every host here fills the same ones, so that a graph
        reads the same integers wherever it runs. Source: Genie's tables, dumped (tests/plugins/genie).

        Args:
            encoding: of both, or None for graphs in floating point.
        """
        import torch  # noqa: PLC0415  as above

        frequencies = torch.tensor(self.frequencies, dtype=torch.float64)
        if self.is_plain:
            frequencies = self.theta ** (-torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)
        angles = torch.arange(rows, dtype=torch.float64)[:, None] * frequencies
        tables = [self.factor * angles.cos(), self.factor * angles.sin()]
        if encoding is not None:
            low, high = encoding.ends
            tables = [(x / encoding.scale).floor().clamp(low, high) * encoding.scale for x in tables]
        cos, sin = (x.float() for x in tables)
        return cos, sin

    def gives(self, cos: Tensor | None, sin: Tensor | None) -> bool:
        """Whether tables at every position are this one's, but for rounding."""
        if cos is None or sin is None:
            return False
        pairs = zip((cos, sin), self.filled(len(cos), None), strict=True)
        return all(a.shape == b.shape and bool((a - b).abs().max() <= TOLERANCE) for a, b in pairs)

    @property
    def width(self) -> int:
        """How many channels of a head are turned."""
        return 2 * len(self.frequencies)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is stretched."""
        return self == Rope.plain(self.theta, self.width)
