"""Decompose sdpa, silu, tanh and layer_norm into primitive ops, whose values each carry an encoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from llmconv import PassError
from llmconv.graph import ATTENTION, CAPPED_ATTENTION, SDPA, Graph, aten, name_of, simplify_movement
from llmconv.passes import RewritePass


@dataclass(frozen=True)
class Decompose(RewritePass):
    """Attention, silu, tanh and layer_norm as the ops that the NPU has; rms_norm stays whole.

    Given:  sdpa(q (1, H, T, D), k and v (1, G, S, D), mask (1, 1, T, S)); silu(x); tanh(x); layer_norm(x, w, b)
    Result: softmax(q @ k^T * scale + mask) @ v, scaled after the matmul, then capped where scores are; x * sigmoid(x);
            2 sigmoid(2 x) - 1, since QNN 2.51 computes Tanh beside a product wrong; rms_norm(x - mean(x), w) + b
    Not applied: rms_norm, whose mean of squares does not fit 16 bits. Causal sdpa without a mask is an error.
    Source: QNN's operators; facts of RMSNorm with massive activations.
    """

    name: ClassVar[str] = "decompose"
    by_place: ClassVar[tuple[str, ...] | None] = ()
    runs_after: ClassVar[tuple[str, ...]] = ("kv_cache_io", "split_heads")
    targets: ClassVar[tuple[torch._ops.OpOverload, ...]] = (
        *(SDPA, CAPPED_ATTENTION, aten.silu.default),
        *(aten.tanh.default, aten.layer_norm.default),
    )

    def why_not(self, node: fx.Node) -> str | None:
        """Nothing, but attention must have a mask."""
        if node.target in ATTENTION and (len(node.args) < 4 or node.args[3] is None):
            raise PassError(f"'{name_of(node)}' has no attention mask; put kv_cache_io before decompose")
        return None

    def replacement_for(self, target: torch._ops.OpOverload) -> Callable[..., Tensor]:
        """Dispatch on the op."""
        if target in _SINGLE:
            return _SINGLE[target]
        return _attention

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        """Replace, then cancel the transposes of keys that are kept transposed."""
        changed = super().rewrite(part, graph)
        return simplify_movement(part.graph) or changed


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    cap: float | None = None,
) -> Tensor:
    if enable_gqa:  # unsplit heads: every query head gets a copy of its group's keys and values
        group = q.shape[1] // k.shape[1]
        heads = [h // group for h in range(q.shape[1])]
        k, v = (torch.cat([x[:, g : g + 1] for g in heads], dim=1) for x in (k, v))
    scores = torch.matmul(q, k.transpose(-2, -1)) * (
        scale if scale is not None else q.shape[-1] ** -0.5
    )  # (1, H, T, S)
    if cap is not None:
        scores = torch.sigmoid(scores * (2 / cap)) * (2 * cap) - cap
    return torch.matmul(torch.softmax(scores + mask, dim=-1), v)  # (1, H, T, D)


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _tanh(x: Tensor) -> Tensor:
    return torch.sigmoid(x * 2) * 2 - 1


def _layer_norm(
    x: Tensor,
    normalized: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-5,
    cudnn: bool = True,
) -> Tensor:
    if len(normalized) > 1:
        raise PassError(f"a layer_norm over {len(normalized)} axes has no form on the NPU; only the last one has")
    normed = F.rms_norm(x - x.mean(-1, keepdim=True), normalized, weight, epsilon)
    return normed if bias is None else normed + bias


_SINGLE: dict[torch._ops.OpOverload, Callable[..., Tensor]] = {
    aten.layer_norm.default: _layer_norm,
    aten.silu.default: _silu,
    aten.tanh.default: _tanh,
}
