"""The two ops that llmconv adds to ATen: a mark that names a value's role while tracing, and a change of bit width."""

import torch


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


MARK, REQUANTIZE = torch.ops.llmconv.mark.default, torch.ops.llmconv.requantize.default
