"""What a target holds, part by part, and what is needed of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmconv.quantities import Unit, quantity

Verdict = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Limit:
    """One bound of a target and what a part needs of it, which is an estimate.

    Attributes:
        part: its name in messages, e.g. "part 1 of 4".
        what: the bound, e.g. "process domain".
        unit: of `need` and `bound`: "B" or "s".
        graph: the graph that needs it, where it needs less at a smaller ar.
        advice: the recipe setting that fits, or "" where nothing is wrong or nothing known fits; the plan finds it.
    """

    part: str
    what: str
    need: float
    bound: float
    unit: Unit
    verdict: Verdict
    graph: str | None = None
    advice: str = ""

    def message(self, chipset: str, advice: str | None = None) -> str:
        """One line for errors and warnings; `advice` instead of its own."""
        advice = self.advice if advice is None else advice
        need, bound = quantity(self.need, self.unit), quantity(self.bound, self.unit)
        fitting = f"set {advice}" if advice else "no part count fits; choose another target"
        return f"{self.part}: {self.what} ≈ {need}, more than the {bound} of {chipset}; {fitting}"
