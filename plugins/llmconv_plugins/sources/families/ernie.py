"""ERNIE 4.5, its dense models."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Architecture
from llmconv_plugins.sources.families.compared import Compared


class Ernie45(Compared):
    """Llama whose RoPE turns neighbours; biases everywhere where the file asks for them."""

    types: ClassVar = ("ernie4_5",)
    defaults: ClassVar = {
        **{"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True, "head_dim": 128},
        **{"max_position_embeddings": 131072, "bos_token_id": 1, "eos_token_id": 2},
    }
    paired: ClassVar = True

    def architecture(self) -> Architecture:
        """One key for all biases."""
        bias = self.keys.flag("use_bias")
        return replace(super().architecture(), qkv_bias=bias, o_bias=bias, mlp_bias=bias)
