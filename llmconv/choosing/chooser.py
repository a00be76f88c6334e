"""What a chooser plugin does: draft recipes for a model, the best first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from llmconv.choosing.draft import Draft
from llmconv.plugins.frame import Framed
from llmconv.sources.model_config import ModelConfig
from llmconv.target import Chipset


@dataclass(frozen=True)
class Facts:
    """What is known of a model before a weight is read.

    Attributes:
        shapes: of the parameters of the source's module, by name.
        context: positions that graphs are to see, within what the model knows and its layers see.
        kept: bits of the integers, with one scale a row, that weights of the checkpoint lie in already; None of floats.
        limited: whether the size of all weights has a bound, so that drafts may differ in size.
    """

    config: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    chipset: Chipset
    context: int
    limited: bool
    kept: int | None = None

    @property
    def parameters(self) -> int:
        """How many numbers there are, a tied head counted as a weight of its own."""
        return sum(map(prod, self.shapes.values()))


@dataclass(frozen=True)
class Chooser(Framed, ABC):
    """Drafts recipes for the chipsets that name it. What is wanted of a draft beside it is the core's to say: the
    checkpoint, the target, the proof, and how many parts.

    Attributes:
        backend: whose limits say what the target holds.
    """

    name: ClassVar[str]
    backend: ClassVar[str]

    @abstractmethod
    def drafts(self, facts: Facts) -> Iterator[Draft]:
        """Graphs, passes and calibration, the best first.

        The first counts that its passes accept, whose size is within the bound, and whose work a night is enough for;
        without such a one, the first that is within the bound.
        """
