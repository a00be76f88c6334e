"""A source: a model of one's own, whose weights lie in weights.npz beside sizes.json and a tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmconv import CheckpointError, Tokenizer, hookimpl
from llmconv.sources import Keys, ModelConfig, Rope, Source


class Rotary(nn.Module):
    def __init__(self, rope: Rope) -> None:
        super().__init__()
        self.frequencies = rope.frequencies

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        each = torch.stack([torch.full((), f, device=position_ids.device) for f in self.frequencies])
        angles = position_ids[:, None, :, None].float() * each  # (1, 1, T, D / 2)
        return angles.cos(), angles.sin()


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.RMSNorm(hidden, 1e-5)
        self.q, self.k, self.v, self.o = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def turned(t: Tensor) -> Tensor:
            half = t.shape[-1] // 2
            a, b = t[..., :half], t[..., half:]
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        read = self.norm(x)  # (1, T, C)
        q, k, v = (p(read).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)  # (1, H, T, D)
        return x + self.o(mixed.transpose(1, 2).flatten(2))


class Attentions(nn.Module):
    """Attention after attention: ids and positions (1, T) to logits (1, T, V)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed, self.rotary = nn.Embedding(c.vocabulary, c.hidden), Rotary(c.ropes[0])
        self.layers = nn.ModuleList(Attention(c.hidden, c.heads) for _ in range(c.layers))
        self.norm, self.head = nn.RMSNorm(c.hidden, 1e-5), nn.Linear(c.hidden, c.vocabulary, bias=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x, (cos, sin) = self.embed(input_ids), self.rotary(position_ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Arrays:
    """Reads an array when asked; npz cannot give some of its rows alone."""

    file: Path

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.read(name).shape)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        with np.load(self.file) as arrays:
            if name not in arrays:
                raise CheckpointError(f"{self.file}: no array '{name}'")
            whole = torch.from_numpy(arrays[name]).float()
        return whole if rows is None else whole[rows]

    def sha256(self, name: str) -> str | None:
        return None


@dataclass(frozen=True)
class NpzFolder(Source):
    """A model of attentions alone: sizes.json, weights.npz and a tokenizer."""

    name = "npz_folder"

    @classmethod
    def reads(cls, checkpoint: Path) -> bool:
        return (checkpoint / "sizes.json").is_file()

    def config(self) -> ModelConfig:
        keys = Keys.read(self.checkpoint / "sizes.json")
        layers, hidden, heads = (keys.integer(key) for key in ("layers", "hidden", "heads"))
        return ModelConfig(
            family="attentions",
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=heads,
            head_dim=hidden // heads,
            vocabulary=keys.integer("vocabulary"),
            positions=keys.integer("positions"),
            window=None,
            bos=keys.integer("bos"),
            eos=(keys.integer("eos"),),
            ropes=(Rope.plain(10000.0, hidden // heads),),
        )

    def module(self) -> nn.Module:
        with torch.device("meta"):
            return Attentions(self.config())

    def weights(self) -> Arrays:
        return Arrays(self.checkpoint / "weights.npz")

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.find(self.checkpoint)

    def description(self) -> Mapping[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.checkpoint / "sizes.json", self.tokenizer().file)}

    def reference(self) -> nn.Module | str:
        return "nothing else reads it"


@hookimpl
def register_sources() -> list[type[Source]]:
    return [NpzFolder]
