"""Gemma 1 to 3, as far as they read text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Activation, Architecture, Keys
from llmconv_plugins.sources.families.compared import Compared


class Gemma(Compared):
    """Llama with norms that multiply by 1 + w, a table of embeddings times sqrt(width), and gelu by tanh."""

    types: ClassVar[tuple[str, ...]] = ("gemma",)
    defaults: ClassVar = {
        **{"hidden_act": "gelu_pytorch_tanh", "head_dim": 256, "max_position_embeddings": 8192},
        **{"tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 1},
    }
    norm_shift: ClassVar = 1.0

    def architecture(self) -> Architecture:
        """With biases where the file asks for them."""
        if self.keys.get("use_bidirectional_attention"):
            raise self.keys.unsupported("use_bidirectional_attention")
        return replace(super().architecture(), **self.attention_biases)

    def activation(self) -> Activation:
        """The first files say "gelu", and mean its approximation."""
        self.keys.get("hidden_activation")
        found = super().activation()
        return "gelu_tanh" if found == "gelu" else found

    def multipliers(self) -> Mapping[str, float]:
        """The embedding's is folded into its table."""
        return {"embed_tokens": self.keys.integer("hidden_size") ** 0.5}


class Gemma2(Gemma):
    """Gemma with norms on what attention and MLP give, too, caps on scores and logits, windows on every other layer."""

    types: ClassVar[tuple[str, ...]] = ("gemma2",)
    defaults: ClassVar = {
        **{"query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 2, "num_key_value_heads": 4},
        **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    }
    always: ClassVar = {"sliding_window_size": ...}
    names: ClassVar = {
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }

    def architecture(self) -> Architecture:
        """Scores are scaled by a number of the file's own."""
        return replace(
            super().architecture(),
            norms_after=True,
            attention_scale=self.keys.positive("query_pre_attn_scalar") ** -0.5,
            attention_cap=self.keys.optional("attn_logit_softcapping"),
            logits_cap=self.keys.optional("final_logit_softcapping"),
        )

    def activation(self) -> Activation:
        """Under a key of its own."""
        self.keys.get("hidden_act")
        if self.keys.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
            raise self.keys.unsupported("hidden_activation")
        return "gelu_tanh"


class VaultGemma(Gemma2):
    """Gemma 2 without the norms on what attention and MLP give."""

    types: ClassVar = ("vaultgemma",)
    names: ClassVar = {"post_attention_layernorm": "pre_feedforward_layernorm"}

    def architecture(self) -> Architecture:
        """As Gemma 2, without these."""
        return replace(super().architecture(), norms_after=False)


class Gemma3(Gemma2):
    """Gemma 2 with norms over each head's queries and keys, and layers with a window that have a RoPE of their own."""

    types: ClassVar[tuple[str, ...]] = ("gemma3_text", "gemma3")
    defaults: ClassVar = {
        **{"attn_logit_softcapping": None, "final_logit_softcapping": None, "max_position_embeddings": 131072},
        **{"vocab_size": 262208, "num_attention_heads": 8, "hidden_size": 2304, "intermediate_size": 9216},
        **{"num_hidden_layers": 26, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6},
    }
    text: ClassVar = "text_config"

    def architecture(self) -> Architecture:
        """As Gemma 2, with these norms."""
        return replace(super().architecture(), qk_norm="head")

    def rope_tables(self) -> dict[str, Keys]:
        """Layers with a window have a base of their own."""
        return self.rope_tables_of_types(rope_theta=self.keys.positive("rope_local_base_freq"))
