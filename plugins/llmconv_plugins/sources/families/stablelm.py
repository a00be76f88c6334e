"""StableLM."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Architecture
from llmconv_plugins.sources.families.compared import Compared


class StableLM(Compared):
    """Llama with LayerNorm and RoPE on a quarter of each head; side by side, and with norms of each head, as asked."""

    types: ClassVar = ("stablelm",)
    defaults: ClassVar = {
        **{"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "max_position_embeddings": 4096},
        **{"bos_token_id": 0, "eos_token_id": 0},
    }
    names: ClassVar = {"q_norm": "q_layernorm", "k_norm": "k_layernorm"}
    epsilon: ClassVar = "layer_norm_eps"

    def architecture(self) -> Architecture:
        """Side by side they read the same."""
        keys = self.keys
        return replace(
            super().architecture(),
            norm="layer",
            norm_bias=True,
            qkv_bias=keys.flag("use_qkv_bias"),
            qk_norm="each" if keys.flag("qk_layernorm") else None,
            parallel="shared" if keys.flag("use_parallel_residual") else None,
        )
