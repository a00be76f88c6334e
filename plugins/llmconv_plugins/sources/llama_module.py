"""Llama as a stateless module: ids and positions in, logits out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaSizes:
    """What the module needs of config.json."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    attention_bias: bool


class Rotary(nn.Module):
    """Positions (1, T) to cos and sin (1, 1, T, D / 2)."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=position_ids.device) / self.head_dim
        angles = position_ids[:, None, :, None].float() * self.theta**-exponents  # (1, 1, T, D / 2)
        return angles.cos(), angles.sin()


class Rope(nn.Module):
    """Rotate the two halves of each head: (1, H, T, D) to the same."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        inner, kv, bias = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim, sizes.attention_bias
        self.sizes = sizes
        self.q_proj = nn.Linear(sizes.hidden, inner, bias=bias)
        self.k_proj = nn.Linear(sizes.hidden, kv, bias=bias)
        self.v_proj = nn.Linear(sizes.hidden, kv, bias=bias)
        self.o_proj = nn.Linear(inner, sizes.hidden, bias=bias)
        self.q_rope, self.k_rope = Rope(), Rope()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads, kv_heads, head_dim = self.sizes.heads, self.sizes.kv_heads, self.sizes.head_dim
        q = self.q_proj(x).unflatten(-1, (heads, head_dim)).transpose(1, 2)  # (1, H, T, D)
        k = self.k_proj(x).unflatten(-1, (kv_heads, head_dim)).transpose(1, 2)  # (1, G, T, D)
        v = self.v_proj(x).unflatten(-1, (kv_heads, head_dim)).transpose(1, 2)  # (1, G, T, D)
        q, k = self.q_rope(q, cos, sin), self.k_rope(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)  # (1, H, T, D)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # (1, T, C)


class FeedForward(nn.Module):
    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)
        self.up_proj = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)
        self.down_proj = nn.Linear(sizes.intermediate, sizes.hidden, bias=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(sizes.hidden, eps=sizes.norm_eps)
        self.self_attn = SelfAttention(sizes)
        self.post_attention_layernorm = nn.RMSNorm(sizes.hidden, eps=sizes.norm_eps)
        self.mlp = FeedForward(sizes)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """Embedding, layers, norm and lm_head; parameter names follow Hugging Face's without the prefix `model.`."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.rotary = Rotary(sizes.head_dim, sizes.rope_theta)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.hidden, eps=sizes.norm_eps)
        self.lm_head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)  # (1, T, C)
        cos, sin = self.rotary(position_ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))  # type: ignore[no-any-return]  # (1, T, V)
