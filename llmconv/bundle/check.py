"""One line of a proof."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """Something measured, and what it must be.

    Attributes:
        step: of the proof, 1 to 6.
        measured: what was found, or why nothing was measured.
        bound: what it must be; empty where the figure is only shown.
        passed: None where it was not run or has no bound.
        advice: what to try where it failed.
    """

    step: int
    name: str
    measured: str
    bound: str = ""
    passed: bool | None = None
    advice: str = ""

    def __post_init__(self) -> None:
        """A comparison of numpy's numbers is no Python bool, which JSON and `is False` ask for."""
        if self.passed is not None:
            object.__setattr__(self, "passed", bool(self.passed))

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def at_most(step: int, name: str, value: float, bound: float, advice: str = "") -> Check:
    """A figure that must not exceed its bound."""
    return Check(step, name, f"{value:.2g}", f"≤ {bound:.0e}", value <= bound, advice)


def at_least(step: int, name: str, value: float, bound: float, advice: str = "") -> Check:
    """A ratio in dB that must reach its bound."""
    return Check(step, name, f"{value:.1f} dB", f"≥ {bound:.3g} dB", value >= bound, advice)
