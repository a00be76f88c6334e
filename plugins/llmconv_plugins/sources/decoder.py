"""A decoder as a stateless module: ids and positions in, logits out; what differs between families is switched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmconv.graph import capped_attention
from llmconv.sources import Activation, Architecture, Rope

Angles = tuple[Tensor, Tensor] | tuple[None, None]  # cos and sin (1, 1, T, R / 2), of layers that RoPE turns


class Rotary(nn.Module):
    """Positions (1, T) to cos and sin (1, 1, T, R / 2) of the R channels of a head that are turned."""

    def __init__(self, rope: Rope) -> None:
        super().__init__()
        self.rope = rope

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        each = [torch.full((), frequency, device=position_ids.device) for frequency in self.rope.frequencies]
        angles = position_ids[:, None, :, None].float() * torch.stack(each)  # (1, 1, T, R / 2)
        cos, sin, factor = angles.cos(), angles.sin(), self.rope.factor
        return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


class TurnHalves(nn.Module):
    """Turn the two halves of the first R channels of each head: (1, H, T, D) to the same."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1]
        a, b = x[..., :half], x[..., half : 2 * half]
        turned = [a * cos - b * sin, b * cos + a * sin]
        rest = [x[..., 2 * half :]] if x.shape[-1] > 2 * half else []
        return torch.cat([*turned, *rest], dim=-1)


class EachHead(nn.Module):
    """Norms of their own for each head: (1, H, T, D) to the same."""

    def __init__(self, norms: list[nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norms)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([norm(x[:, h : h + 1]) for h, norm in enumerate(self.norms)], dim=1)


def norm(a: Architecture, width: int, bias: bool | None = None) -> nn.Module:
    """A norm over the last axis."""
    if a.norm == "rms":
        return nn.RMSNorm(width, eps=a.norm_eps)
    return nn.LayerNorm(width, eps=a.norm_eps, bias=a.norm_bias if bias is None else bias)


class SelfAttention(nn.Module):
    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        inner, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
        self.q_proj = nn.Linear(a.hidden, inner, bias=a.qkv_bias)
        self.k_proj = nn.Linear(a.hidden, kv, bias=a.qkv_bias)
        self.v_proj = nn.Linear(a.hidden, kv, bias=a.qkv_bias)
        self.o_proj = nn.Linear(inner, a.hidden, bias=a.o_bias)
        self.q_norm, self.k_norm = self._qk_norm(a.heads), self._qk_norm(a.kv_heads)
        self.q_rope, self.k_rope = TurnHalves(), TurnHalves()

    def _qk_norm(self, heads: int) -> nn.Module:
        if self.a.qk_norm is None:
            return nn.Identity()
        if self.a.qk_norm == "each":
            return EachHead([norm(self.a, self.a.head_dim, bias=False) for _ in range(heads)])
        return norm(self.a, self.a.head_dim if self.a.qk_norm == "head" else heads * self.a.head_dim)

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        a = self.a
        q, k = self.q_proj(x), self.k_proj(x)  # (1, T, H * D)
        if a.qk_norm == "whole":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.unflatten(-1, (a.heads, a.head_dim)).transpose(1, 2)  # (1, H, T, D)
        k = k.unflatten(-1, (a.kv_heads, a.head_dim)).transpose(1, 2)  # (1, G, T, D)
        v = self.v_proj(x).unflatten(-1, (a.kv_heads, a.head_dim)).transpose(1, 2)  # (1, G, T, D)
        by_head = a.qk_norm in ("head", "each")
        if by_head and not a.qk_norm_after_rope:
            q, k = self.q_norm(q), self.k_norm(k)
        if cos is not None:
            q, k = self.q_rope(q, cos, sin), self.k_rope(k, cos, sin)
        if by_head and a.qk_norm_after_rope:
            q, k = self.q_norm(q), self.k_norm(k)
        out = self._attend(q, k, v)  # (1, H, T, D)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # (1, T, C)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale, cap, shared = self.a.attention_scale, self.a.attention_cap, self.a.heads != self.a.kv_heads
        if cap is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=shared)
        out: Tensor = capped_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=shared, cap=cap)
        return out


class Squared(nn.Module):
    """The square of what is positive."""

    def forward(self, x: Tensor) -> Tensor:
        positive = F.relu(x)
        return positive * positive


def activation(name: Activation) -> nn.Module:
    """Of an MLP."""
    if name == "silu":
        return nn.SiLU()
    if name == "relu2":
        return Squared()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


class FeedForward(nn.Module):
    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(a.hidden, a.intermediate, bias=a.mlp_bias) if a.gated else None
        self.up_proj = nn.Linear(a.hidden, a.intermediate, bias=a.mlp_bias)
        self.down_proj = nn.Linear(a.intermediate, a.hidden, bias=a.mlp_bias)
        self.act = activation(a.activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.act(self.up_proj(x)))  # type: ignore[no-any-return]
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.parallel = a.parallel
        before = [norm(a, a.hidden) if a.norms_before else nn.Identity() for _ in range(2)]
        after = [norm(a, a.hidden) if a.norms_after else nn.Identity() for _ in range(2)]
        self.input_layernorm = before[0]
        self.self_attn = SelfAttention(a)
        self.attention_output_norm = after[0]
        self.post_attention_layernorm = nn.Identity() if a.parallel == "shared" else before[1]
        self.mlp = FeedForward(a)
        self.mlp_output_norm = after[1]

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        read = self.input_layernorm(x)
        attended = self.attention_output_norm(self.self_attn(read, cos, sin))
        if self.parallel is not None:
            read = read if self.parallel == "shared" else self.post_attention_layernorm(x)
            return x + attended + self.mlp_output_norm(self.mlp(read))  # type: ignore[no-any-return]
        x = x + attended
        return x + self.mlp_output_norm(self.mlp(self.post_attention_layernorm(x)))  # type: ignore[no-any-return]


class DecoderModule(nn.Module):
    """Embedding, layers, norm and lm_head; names of parameters are those of Llama in Hugging Face, less `model.`."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(a.vocabulary, a.hidden)
        self.rotary = Rotary(a.ropes[0])
        self.rotary_local = Rotary(a.ropes[1]) if len(a.ropes) > 1 else None
        self.layers = nn.ModuleList(Layer(a) for _ in range(a.layers))
        self.norm = norm(a, a.hidden)
        self.lm_head = nn.Linear(a.hidden, a.vocabulary, bias=a.head_bias)
        self.rope_of, self.cap = a.rope_of or (0,) * a.layers, a.logits_cap

    @property
    def kinds(self) -> Sequence[int | None]:
        """Of each layer: the table that turns it; in all else layers are alike."""
        return self.rope_of

    def keep(self, layers: Sequence[int]) -> None:
        """Drop all other layers."""
        self.layers = nn.ModuleList(self.layers[i] for i in layers)
        self.rope_of = tuple(self.rope_of[i] for i in layers)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)  # (1, T, C)
        angles: dict[int | None, Angles] = {0: self.rotary(position_ids), None: (None, None)}
        if self.rotary_local is not None:
            angles[1] = self.rotary_local(position_ids)
        for layer, rope in zip(self.layers, self.rope_of, strict=True):
            x = layer(x, *angles[rope])
        logits: Tensor = self.lm_head(self.norm(x))  # (1, T, V)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
