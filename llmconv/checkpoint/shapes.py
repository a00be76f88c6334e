"""Weights of which shapes alone are known: what graphs are laid out over before a checkpoint is read."""

from __future__ import annotations

import torch
from torch import nn

from llmconv.errors import PassError


class ShapeStore:
    """The shapes of a module's parameters; reading one is an error."""

    def __init__(self, module: nn.Module) -> None:
        self._shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self._shapes[name]

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """There is nothing to read.

        Raises:
            PassError: always.
        """
        raise PassError(f"weight '{name}' is read, but a plan is made from shapes alone")
