"""Base class of passes over the ONNX of a part, behind its lowering."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class OnnxPass(ABC):
    """Rewrites the ONNX of one part at a time. A subclass is a frozen dataclass; its fields are the recipe's options.

    Attributes:
        name: the recipe's name of the pass.
        tolerance: how far an output may be from what it was on the same inputs, as a share of its largest number; of
            integers, as a share of their whole range.
    """

    name: ClassVar[str]
    tolerance: ClassVar[float] = 3e-5  # float32 rounding; a step of 16 bits is half of it

    @abstractmethod
    def rewrite(self, graph: gs.Graph) -> bool:
        """Rewrite a part in place; say truthfully whether anything changed.

        Nodes bear structural names; the numbers of large weights lie in the part's file, and are not at hand. What
        nothing uses is removed afterwards, and the others are brought into order.
        """
