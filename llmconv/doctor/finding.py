"""One thing that was looked at on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "optional"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, and how it was found.

    Attributes:
        found: what is there, in a few words: a version, an amount, or what is wrong.
        state: "missing" where recipes that come with llmconv need it, "optional" where something else does.
        remedy: what to do, where it is not ok.
    """

    what: str
    found: str
    state: State = "ok"
    remedy: str = ""


Checkup = Callable[[], Iterable[Finding]]
