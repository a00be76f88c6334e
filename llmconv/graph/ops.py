"""What an op is: tables of ATen's, and the two that llmconv adds, a mark of roles while tracing, a change of width."""

from collections.abc import Iterator

import torch
from torch import fx

aten = torch.ops.aten

SDPA = aten.scaled_dot_product_attention.default

# Ops that change the order of axes, or add and drop axes of length 1: decided by axes alone.
AXES = {
    aten.alias.default,
    aten.permute.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unsqueeze.default,
}
# Ops whose result holds their one input's numbers in the same order, in another shape.
RESHAPE = {
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
}
# Ops whose result holds all numbers of their one input, and no others.
REARRANGEMENT = AXES | RESHAPE | {aten.expand.default}
# Ops whose result holds their inputs' numbers, unchanged.
MOVEMENT = REARRANGEMENT | {aten.cat.default, aten.select.int, aten.slice.Tensor}
# Ops that compute each element by itself, so that they take any layout that all operands share.
ELEMENTWISE = {
    aten.add.Tensor,
    aten.div.Tensor,
    aten.gelu.default,
    aten.mul.Tensor,
    aten.neg.default,
    aten.relu.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.sub.Tensor,
    aten.tanh.default,
}
# Ops that normalize over the last axis; a weight is their argument 2, a bias of the second their argument 3.
NORMS = {aten.rms_norm.default, aten.layer_norm.default}


def weight_of(node: fx.Node) -> fx.Node | None:
    """The weight that a node is computed from, if it is computed from one weight alone."""
    while node.op == "call_function":
        inputs = node.all_input_nodes
        if len(inputs) != 1:
            return None
        node = inputs[0]
    return node if node.op == "get_attr" else None


def is_table(weight: fx.Node) -> bool:
    """Whether a weight is looked up and nothing else."""
    return all(user.target is aten.embedding.default for user in weight.users)


def uses_of(weight: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What computes with a weight, through its slices and reshapes, and the node that it is called by there."""
    for user in weight.users:
        if user.target in MOVEMENT and weight_of(user) is not None:
            yield from uses_of(user)
        else:
            yield user, weight


@torch.library.custom_op("llmconv::mark", mutates_args=())
def mark(x: torch.Tensor, role: str) -> torch.Tensor:
    """Name the role of a value while a module is traced; `trace` removes the node and keeps the role."""
    return x.clone()


@torch.library.custom_op("llmconv::requantize", mutates_args=())
def requantize(x: torch.Tensor) -> torch.Tensor:
    """Identity in float; where encodings apply, the result carries another encoding than `x` (QNN: Convert)."""
    return x.clone()


@torch.library.custom_op("llmconv::capped_attention", mutates_args=())
def capped_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    cap: float,
) -> torch.Tensor:
    """scaled_dot_product_attention whose scores x are cap * tanh(x / cap) before the mask; arguments are the same.

    Source: Gemma 2.
    """
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.matmul(q, k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.tanh(scores / cap) * cap
    if is_causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(ahead, -torch.inf)
    return torch.matmul(torch.softmax(scores if mask is None else scores + mask, dim=-1), v)


@capped_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@mark.register_fake
def _(x: torch.Tensor, role: str) -> torch.Tensor:
    return torch.empty_like(x)


@requantize.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


requantize.register_autograd(lambda _context, gradient: gradient)

MARK = torch.ops.llmconv.mark.default
REQUANTIZE = torch.ops.llmconv.requantize.default
CAPPED_ATTENTION = torch.ops.llmconv.capped_attention.default
ATTENTION = {SDPA, CAPPED_ATTENTION}  # ops of queries, keys, values and a mask
