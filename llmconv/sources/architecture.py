"""What a decoder computes: its sizes, and where it differs from Llama."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmconv.sources.rope import Rope

Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]


@dataclass(frozen=True)
class Architecture:
    """What the decoder module is built from; the defaults are Llama's.

    Attributes:
        positions: that it knows.
        ropes: tables of cos and sin, one or two: the first is the model's, the second that of layers with a window.
        rope_of: of each layer, which of them turns its queries and keys; None for none; by default the first for all.
        norm: root mean square alone, or with the mean subtracted first; `norm_bias` adds to what comes of it.
        norms_before, norms_after: whether attention and MLP have a norm before them, and one on what they give.
        parallel: whether the MLP reads what attention reads ("shared" norm), or the same stream by a norm of its own.
        qk_norm: of queries and keys: over each "head" with one weight, over each by a weight of "each" its own, over
            the "whole" width before heads are split; or none.
        qk_norm_after_rope: whether RoPE comes first.
        gated: whether the MLP is down(act(gate(x)) * up(x)), or down(act(up(x))).
        attention_scale: of the scores; by default 1 / sqrt(head_dim).
        attention_cap, logits_cap: scores and logits x as cap * tanh(x / cap).
        window: how many positions the narrowest layer sees; None where each sees all.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    positions: int
    ropes: tuple[Rope, ...]
    rope_of: tuple[int | None, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    norms_before: bool = True
    norms_after: bool = False
    parallel: Literal["shared", "own"] | None = None
    qk_norm: Literal["head", "each", "whole"] | None = None
    qk_norm_after_rope: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    activation: Activation = "silu"
    gated: bool = True
    attention_scale: float | None = None
    attention_cap: float | None = None
    logits_cap: float | None = None
    window: int | None = None
