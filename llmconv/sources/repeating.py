"""What a source's module may offer beside `forward`, so that plans of deep models take little time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Repeating(Protocol):
    """A module that can do without some of its layers.

    Attributes:
        kinds: of each layer; layers of a kind differ in the numbers of their weights alone.
    """

    @property
    def kinds(self) -> Sequence[Hashable]: ...

    def keep(self, layers: Sequence[int]) -> None:
        """Drop all others."""
