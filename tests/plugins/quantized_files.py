"""Checkpoints as quantization tools write them, packed number by number as the tools' documents say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass
class Quantized:
    """A linear's weight: (ints - zero) * scale, ints from 0; scale and zero are (rows, groups), of columns `group`."""

    ints: Tensor
    zero: Tensor
    scale: Tensor
    group: Tensor

    def dense(self) -> Tensor:
        return (self.ints - self.zero[:, self.group]).float() * self.scale.float()[:, self.group]


def quantized(
    rows: int,
    columns: int,
    bits: int = 4,
    size: int = 0,
    *,
    centred: bool = True,
    multiples: bool = True,
    seed: int = 0,
) -> Quantized:
    """Random integers on random scales, in groups of `size` columns."""
    g = torch.Generator().manual_seed(seed)
    groups = columns // (size or columns)
    times = torch.randint(1, 17, (rows, groups), generator=g).float() if multiples else 1 + torch.rand(rows, groups)
    scale = (2.0 ** torch.randint(-9, -5, (rows, 1), generator=g) * (times if groups > 1 else 1)).half()
    middle = 1 << bits - 1
    zero = torch.full((rows, groups), middle)
    if not centred:
        zero = torch.randint(1, 2 * middle, (rows, groups), generator=g)
    ints = torch.randint(0, 2 * middle, (rows, columns), generator=g)
    return Quantized(ints, zero, scale, torch.arange(columns) // (size or columns))


def packed(x: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """(rows, columns) to words of 32 bits along the columns, the first in the lowest bits."""
    count = 32 // bits
    words = torch.zeros(x.shape[0], -(-x.shape[1] // count), dtype=torch.int64)
    for column in range(x.shape[1]):
        word, place = divmod(column, count)
        if order is not None:
            place = order.index(place)
        words[:, word] |= x[:, column].long() << (bits * place)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def compressed(q: Quantized, bits: int, *, pack: bool = True) -> dict[str, Tensor]:
    middle = 1 << bits - 1
    found = {"weight_scale": q.scale}
    if pack:
        found |= {"weight_packed": packed(q.ints, bits), "weight_shape": torch.tensor(q.ints.shape)}
    else:
        found["weight"] = (q.ints - middle).to(torch.int8)
    if bool((q.zero != middle).any()):
        zero = q.zero
        found["weight_zero_point"] = packed(zero.T, bits).T.contiguous() if pack else (zero - middle).to(torch.int8)
    return found


def gptq(q: Quantized, bits: int, less: int = 1) -> dict[str, Tensor]:
    return {
        "qweight": packed(q.ints, bits).T.contiguous(),
        "qzeros": packed(q.zero.T - less, bits),
        "scales": q.scale.T.contiguous(),
        "g_idx": q.group.int(),
    }


def awq(q: Quantized) -> dict[str, Tensor]:
    return {
        "qweight": packed(q.ints.T, 4, AWQ_ORDER),
        "qzeros": packed(q.zero.T, 4, AWQ_ORDER),
        "scales": q.scale.T.contiguous(),
    }


COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}


def compressed_config(bits: int, layout: str = "pack-quantized", strategy: str = "channel") -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy}
    return {**COMPRESSED, "format": layout, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def rewrite(folder: Path, config: dict[str, Any], weights: dict[str, dict[str, Tensor]]) -> None:
    """Put quantized linears in the place of a checkpoint's own; `weights`: module -> tensors by the last word."""
    said, file = folder / "config.json", folder / "model.safetensors"
    said.write_text(json.dumps({**json.loads(said.read_text()), "quantization_config": config}))
    tensors = load_file(file)
    for module, own in weights.items():
        tensors.pop(f"{module}.weight")
        tensors |= {f"{module}.{name}": tensor for name, tensor in own.items()}
    save_file(tensors, file, metadata={"format": "pt"})
