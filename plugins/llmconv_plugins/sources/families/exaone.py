"""EXAONE 3 and 4."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import SLIDING, Architecture
from llmconv_plugins.sources.families.compared import Compared
from llmconv_plugins.sources.families.llama import Llama
from llmconv_plugins.sources.families.olmo import Olmo2


class Exaone(Llama):
    """Llama under names of its own."""

    types: ClassVar = ("exaone",)
    defaults: ClassVar = {
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "eos_token_id": 361,
        "max_position_embeddings": 4096,
    }
    aliases: ClassVar = {
        "num_layers": "num_hidden_layers",
        "layer_norm_epsilon": "rms_norm_eps",
        "activation_function": "hidden_act",
    }
    names: ClassVar = {
        **{"embed_tokens": "wte", "layers": "h", "norm": "ln_f", "input_layernorm": "ln_1"},
        **{"post_attention_layernorm": "ln_2", "self_attn": "attn.attention", "o_proj": "out_proj"},
        **{"gate_proj": "c_fc_0", "up_proj": "c_fc_1", "down_proj": "c_proj"},
    }
    prefixes: ClassVar = ("transformer.",)


class Exaone4(Compared):
    """Norms behind attention and MLP, and over each head's queries and keys; RoPE in layers with a window alone."""

    types: ClassVar = ("exaone4",)
    defaults: ClassVar = {
        **{"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4},
        **{"bos_token_id": 0, "eos_token_id": 2},
    }
    names: ClassVar = Olmo2.names

    def architecture(self) -> Architecture:
        """As OLMo 2 but for the norms of queries and keys."""
        return replace(super().architecture(), norms_before=False, norms_after=True, qk_norm="head")

    def turns(self, kind: str) -> bool:
        """Layers that see all are not turned where others have a window."""
        return kind == SLIDING or self.keys.get("sliding_window") is None
