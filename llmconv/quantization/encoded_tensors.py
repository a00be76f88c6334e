"""Weights on their grids as plain tensors, for a file between two runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmconv.encodings.grid import Encoded, Grid


def tensors_of(quantized: Mapping[str, Encoded]) -> dict[str, Tensor]:
    """Tensors by weight and part of it."""
    found: dict[str, Tensor] = {}
    for name, encoded in quantized.items():
        found |= {f"{name}/ints": encoded.ints, f"{name}/scale": encoded.scale}
        found[f"{name}/zero_point"] = torch.tensor(encoded.zero_point)
        if encoded.multipliers is not None:
            found[f"{name}/multipliers"] = encoded.multipliers
    return found


def quantized_of(tensors: Mapping[str, Tensor], grids: Mapping[str, Grid]) -> dict[str, Encoded]:
    """What `tensors_of` was given.

    Args:
        grids: of every weight.
    """
    names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
    return {
        name: Encoded(
            tensors[f"{name}/ints"],
            tensors[f"{name}/scale"],
            int(tensors[f"{name}/zero_point"]),
            grids[name],
            tensors.get(f"{name}/multipliers"),
        )
        for name in names
    }
