"""GLM 4 and GLM-4-0414."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Architecture
from llmconv_plugins.sources.families.compared import Compared


class Glm(Compared):
    """Llama with biases on queries, keys and values, a fused MLP, and RoPE on neighbours of half of each head."""

    types: ClassVar = ("glm",)
    defaults: ClassVar = {
        **{"rms_norm_eps": 0.00000015625, "attention_bias": True, "partial_rotary_factor": 0.5, "head_dim": 128},
        **{"max_position_embeddings": 131072, "bos_token_id": None, "eos_token_id": [151329, 151336, 151338]},
    }
    fused: ClassVar = {"gate_up_proj": ("gate_proj", "up_proj")}
    paired: ClassVar = True

    def architecture(self) -> Architecture:
        """No bias on o_proj."""
        return replace(super().architecture(), qkv_bias=self.keys.flag("attention_bias"))


class Glm4(Glm):
    """Norms on what attention and MLP give, too."""

    types: ClassVar = ("glm4",)
    names: ClassVar = {"attention_output_norm": "post_self_attn_layernorm", "mlp_output_norm": "post_mlp_layernorm"}

    def architecture(self) -> Architecture:
        """As GLM, with these norms."""
        return replace(super().architecture(), norms_after=True)
