"""Weights of which shapes alone are known: what graphs are laid out over before a checkpoint is read."""

from __future__ import annotations

import torch
from torch import nn

from llmconv.errors import PassError


class ShapeStore:
    """The shapes of a module's parameters; reading one is an error.

    Attributes:
        asked: the weight that something tried to read.
    """

    def __init__(self, module: nn.Module) -> None:
        self._shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        self.asked: str | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self._shapes[name]

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """There is nothing to read.

        Raises:
            PassError: always.
        """
        self.asked = name
        raise PassError(f"weight '{name}' is read, but the graphs are only laid out and no weight is at hand")
