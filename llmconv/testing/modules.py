"""Ready modules of a few thousand weights, on the meta device as a source gives them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmconv.naming import nearest
from llmconv.weights.store import DictStore

# No two of these lengths are alike, so that an axis is known by its length.
VOCABULARY, WIDTH, INNER, HEAD_DIM, LAYERS = 50, 32, 40, 14, 2

# name -> what `TinyDecoder` takes
MODULES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "mha": {"kv_heads": 4},
        "gqa": {},
        "tied": {"tied": True},
        "biased": {"bias": True},
        "qk_norm": {"qk_norm": True},
        "two_rotaries": {"local": True},
    }
)


def tiny_module(name: str = "gqa") -> TinyDecoder:
    """One of `MODULES`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in MODULES:
        raise ValueError(f"no module named '{name}'{nearest(name, MODULES)}")
    with torch.device("meta"):
        return TinyDecoder(**MODULES[name])


def random_weights(module: nn.Module, seed: int = 0) -> DictStore:
    """Weights for a module on the meta device: norms around 1, all else with variance 1 / columns; tied ones alike."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[nn.Parameter, Tensor] = {}
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        drawn[parameter] = 1 + 0.1 * values if values.ndim == 1 else values * values.shape[-1] ** -0.5
    return DictStore({name: drawn[parameter] for name, parameter in module.named_parameters(remove_duplicate=False)})


class Rotary(nn.Module):
    """Positions (1, T) to cos and sin (1, 1, T, D / 2)."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """As `Source.module` asks for."""
        channels = torch.arange(0, HEAD_DIM, 2, dtype=torch.float32, device=position_ids.device)
        angles = position_ids[:, None, :, None].float() * self.theta ** (-channels / HEAD_DIM)
        return angles.cos(), angles.sin()


class _Attention(nn.Module):
    def __init__(self, heads: int, kv_heads: int, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.shared = heads != kv_heads
        self.q_proj = nn.Linear(WIDTH, heads * HEAD_DIM, bias=bias)
        self.k_proj = nn.Linear(WIDTH, kv_heads * HEAD_DIM, bias=bias)
        self.v_proj = nn.Linear(WIDTH, kv_heads * HEAD_DIM, bias=bias)
        self.o_proj = nn.Linear(heads * HEAD_DIM, WIDTH, bias=bias)
        self.q_norm, self.k_norm = (nn.RMSNorm(HEAD_DIM, 1e-5) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (self._turned(t, cos, sin) for t in (self.q_norm(q), self.k_norm(k)))  # (1, H, T, D), (1, G, T, D)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.shared)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))  # (1, T, C)
        return out

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class _FeedForward(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, INNER, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(INNER, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):
    def __init__(self, heads: int, kv_heads: int, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(WIDTH, 1e-5) for _ in range(2))
        self.self_attn = _Attention(heads, kv_heads, bias, qk_norm)
        self.mlp = _FeedForward(bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class TinyDecoder(nn.Module):
    """Two layers of Llama, named as in Hugging Face.

    Args:
        tied: whether lm_head is the embedding.
        bias: of every projection.
        qk_norm: whether each head's queries and keys are normed.
        local: whether the second layer has a rotary of its own.
    """

    def __init__(
        self,
        *,
        heads: int = 4,
        kv_heads: int = 2,
        tied: bool = False,
        bias: bool = False,
        qk_norm: bool = False,
        local: bool = False,
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.rotary = Rotary(10000.0)
        self.rotary_local = Rotary(100.0) if local else None
        self.layers = nn.ModuleList(_Layer(heads, kv_heads, bias, qk_norm) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, 1e-5)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Ids and positions (1, T) to logits (1, T, V)."""
        x = self.embed_tokens(input_ids)
        angles = [self.rotary(position_ids)] * LAYERS
        if self.rotary_local is not None:
            angles[-1] = self.rotary_local(position_ids)
        for layer, (cos, sin) in zip(self.layers, angles, strict=True):
            x = layer(x, cos, sin)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits
