"""RoPE's tables of cos and sin, as data."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def width(self) -> int:
        """How many channels of a head are turned."""
        return 2 * len(self.frequencies)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is stretched."""
        return self == Rope.plain(self.theta, self.width)
