"""Command R7B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from llmconv.sources import SLIDING, Architecture
from llmconv_plugins.sources.families.compared import Compared


class Cohere2(Compared):
    """A shared LayerNorm before attention and MLP, side by side; RoPE on neighbours, in layers with a window alone."""

    types: ClassVar = ("cohere2",)
    defaults: ClassVar = {
        **{"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "sliding_window": 4096, "sliding_window_pattern": 4},
        **{"tie_word_embeddings": True, "max_position_embeddings": 8192, "bos_token_id": 5, "eos_token_id": 255001},
    }
    always: ClassVar = {
        **{
            "order_of_interleaved_layers": "local_attn_first",
            "position_embedding_type": "rope_gptj",
            "rotary_pct": 1.0,
        },
        **{"use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True},
        **{"use_parallel_embedding": ..., "layer_switch": ...},
    }
    epsilon: ClassVar = "layer_norm_eps"
    paired: ClassVar = True

    def architecture(self) -> Architecture:
        """With biases where the file asks for them."""
        return replace(super().architecture(), norm="layer", parallel="shared", **self.attention_biases)

    def turns(self, kind: str) -> bool:
        """Where there is a window."""
        return kind == SLIDING and self.keys.get("sliding_window") is not None

    def multipliers(self) -> Mapping[str, float]:
        """The logits' is folded into lm_head."""
        return {"lm_head": self.keys.positive("logit_scale")}
