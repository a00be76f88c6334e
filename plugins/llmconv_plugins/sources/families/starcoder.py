"""StarCoder 2."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Architecture
from llmconv_plugins.sources.families.compared import Compared


class Starcoder2(Compared):
    """LayerNorms, an MLP of two projections with gelu by tanh, and biases everywhere."""

    types: ClassVar = ("starcoder2",)
    defaults: ClassVar = {
        **{"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "use_bias": True, "tie_word_embeddings": True},
        **{"max_position_embeddings": 4096, "bos_token_id": 50256, "eos_token_id": 50256},
    }
    always: ClassVar = {"norm_type": "layer_norm", "mlp_type": "default", "activation_function": ...}
    names: ClassVar = {"up_proj": "c_fc", "down_proj": "c_proj"}
    epsilon: ClassVar = "norm_epsilon"

    def architecture(self) -> Architecture:
        """One key for all biases."""
        bias = self.keys.flag("use_bias")
        found = replace(super().architecture(), norm="layer", norm_bias=True, gated=False)
        return replace(found, qkv_bias=bias, o_bias=bias, mlp_bias=bias)
