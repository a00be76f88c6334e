"""A family of one's own: a Llama whose checkpoints fuse queries, keys and values, and scale the logits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from llmconv import hookimpl
from llmconv.sources import Architecture, Family


class NanoLlama(Family):
    """Norms over each head's queries and keys, one tensor for all three projections, logits times a constant."""

    types: ClassVar = ("nano_llama",)
    defaults: ClassVar = {"rope_theta": 50000.0, "tie_word_embeddings": True}
    names: ClassVar = {"q_norm": "query_norm", "k_norm": "key_norm"}
    fused: ClassVar = {"qkv": ("q_proj", "k_proj", "v_proj")}

    def architecture(self) -> Architecture:
        """Llama's, with these norms."""
        return replace(super().architecture(), qk_norm="head")

    def multipliers(self) -> Mapping[str, float]:
        """Folded into lm_head."""
        return {"lm_head": self.keys.number("logit_factor", 1.0)}


@hookimpl
def register_families() -> list[type[Family]]:
    return [NanoLlama]
