"""Scale the queries instead of the scores."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmconv import hookimpl
from llmconv.graph import aten
from llmconv.passes import RewritePass

SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class ScaleQueries(RewritePass):
    """sdpa(q, k, v) becomes sdpa(q * scale, k, v, scale=1): scores then come out of the matmul in their final range."""

    name = "scale_queries"
    targets = (SDPA,)

    def replacement(self, q: Tensor, *rest: Any, scale: float | None = None, **kwargs: Any) -> Tensor:
        return SDPA(q * (scale or q.shape[-1] ** -0.5), *rest, scale=1.0, **kwargs)


@hookimpl
def register_passes() -> list[type[RewritePass]]:
    return [ScaleQueries]
