"""What the built-in families have in common."""

from __future__ import annotations

from typing import ClassVar

from llmconv.sources import Family


class Compared(Family):
    """A family whose logits tests compare with transformers', for every model type."""

    compared_with: ClassVar[str] = "transformers 5.24"
