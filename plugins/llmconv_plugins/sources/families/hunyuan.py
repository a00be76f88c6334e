"""Hunyuan, its dense models."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Architecture
from llmconv_plugins.sources.families.llama import Llama


class Hunyuan(Llama):
    """Llama with norms over each head's queries and keys, after RoPE."""

    types: ClassVar = ("hunyuan_v1_dense",)
    defaults: ClassVar = {"rms_norm_eps": 1e-5}
    always: ClassVar = {
        **{"use_qk_norm": True, "use_cla": False, "cla_share_factor": ..., "attention_head_dim": ..., "norm_type": ...},
        **{"num_media_embeds": ..., "org_vocab_size": ...},
    }
    names: ClassVar = {"q_norm": "query_layernorm", "k_norm": "key_layernorm"}

    def architecture(self) -> Architecture:
        """As Llama, with these norms."""
        return replace(super().architecture(), qk_norm="head", qk_norm_after_rope=True, mlp_bias=False)
