"""Decompose sdpa and silu into primitive ops, whose values each carry an encoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from llmconv import PassError
from llmconv.graph import ATTENTION, CAPPED_ATTENTION, SDPA, Graph, aten, name_of, simplify_movement
from llmconv.passes import RewritePass


@dataclass(frozen=True)
class Decompose(RewritePass):
    """Attention and silu as the ops that the NPU has; norms stay whole.

    Given:  sdpa(q (1, H, T, D), k and v (1, G, S, D), mask (1, 1, T, S)); silu(x)
    Result: softmax(q @ k^T * scale + mask) @ v, scaled after the matmul, then capped where scores are; x * sigmoid(x)
    Not applied: norms, whose mean of squares does not fit 16 bits. Causal sdpa without a mask is an error.
    Source: QNN's operators; facts of RMSNorm with massive activations.
    """

    name: ClassVar[str] = "decompose"
    runs_after: ClassVar[tuple[str, ...]] = ("kv_cache_io", "split_heads")
    targets: ClassVar[tuple[torch._ops.OpOverload, ...]] = (SDPA, CAPPED_ATTENTION, aten.silu.default)

    def applies(self, node: fx.Node) -> bool:
        """Every silu, and attention that has a mask."""
        if node.target in ATTENTION and (len(node.args) < 4 or node.args[3] is None):
            raise PassError(f"'{name_of(node)}' has no attention mask; put kv_cache_io before decompose")
        return True

    def replacement_for(self, target: torch._ops.OpOverload) -> Callable[..., Tensor]:
        """Dispatch on the op."""
        return _attention if target in ATTENTION else _silu

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
        scores = torch.tanh(scores / cap) * cap
    return torch.matmul(torch.softmax(scores + mask, dim=-1), v)  # (1, H, T, D)


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)
