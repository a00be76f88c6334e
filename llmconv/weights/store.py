"""Weights that are read when asked and never held: one tensor, or a row range of it, at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from llmconv.errors import PassError


class WeightStore(Protocol):
    """Reads weights by the name that the traced module gives them."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, without reading it."""
        ...

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32.

        A store may have an attribute `hashes`: name -> sha256 of the checkpoint's bytes of each weight that was read
        whole, out of the same read.
        """
        ...


@dataclass
class DictStore:
    """Weights that lie in memory: small modules in tests and in the testing helper."""

    tensors: Mapping[str, torch.Tensor]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return tuple(self.tensors[name].shape)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32."""
        tensor = self.tensors[name].detach().to(torch.float32)
        return tensor if rows is None else tensor[rows]


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
