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
# Ops whose result holds their inputs' numbers, unchanged.
MOVEMENT = AXES | RESHAPE | {aten.cat.default, aten.expand.default, aten.select.int, aten.slice.Tensor}
# Ops that compute each element by itself, so that they take any layout that all operands share.
ELEMENTWISE = {
    aten.add.Tensor,
    aten.div.Tensor,
    aten.mul.Tensor,
    aten.neg.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.sub.Tensor,
}


def weight_of(node: fx.Node) -> fx.Node | None:
    """The weight that a node is computed from, if it is computed from one weight alone."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node if node.op == "get_attr" else None


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


@mark.register_fake
def _(x: torch.Tensor, role: str) -> torch.Tensor:
    return torch.empty_like(x)


@requantize.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


requantize.register_autograd(lambda _context, gradient: gradient)

MARK, REQUANTIZE = torch.ops.llmconv.mark.default, torch.ops.llmconv.requantize.default
