"""Llama, and what differs from it by a default or two."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import FULL, SLIDING, Architecture
from llmconv_plugins.sources.families.compared import Compared


class Llama(Compared):
    """Llama 1 to 3, SmolLM 2, Falcon 3, Yi, and DeepSeek's distillations into it."""

    types: ClassVar = ("llama",)
    defaults: ClassVar = {"bos_token_id": 1, "eos_token_id": 2}

    def architecture(self) -> Architecture:
        """With biases where the file asks for them."""
        return replace(super().architecture(), **self.attention_biases, mlp_bias=self.keys.flag("mlp_bias"))


class Arcee(Llama):
    """Llama with an MLP of two projections, and the square of what is positive between them."""

    types: ClassVar = ("arcee",)
    defaults: ClassVar = {
        **{"hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
        **{"bos_token_id": 128000, "eos_token_id": 128001},
    }

    def architecture(self) -> Architecture:
        """Not gated."""
        return replace(super().architecture(), gated=False)


class Helium(Llama):
    """Llama whose RoPE turns neighbours."""

    types: ClassVar = ("helium",)
    defaults: ClassVar = {
        "rms_norm_eps": 1e-8,
        "rope_theta": 100000.0,
        "max_position_embeddings": 4096,
        "head_dim": 128,
    }
    paired: ClassVar = True

    def architecture(self) -> Architecture:
        """Without a bias on o_proj."""
        return replace(super().architecture(), o_bias=False)


class SeedOss(Llama):
    """Llama with biases on queries, keys and values."""

    types: ClassVar = ("seed_oss",)
    defaults: ClassVar = {
        **{"attention_bias": True, "max_position_embeddings": 524288, "head_dim": 128},
        **{"bos_token_id": 0, "eos_token_id": 2},
    }

    def architecture(self) -> Architecture:
        """With a bias on o_proj apart."""
        return replace(super().architecture(), o_bias=self.keys.flag("attention_out_bias"))


class InternLM3(Llama):
    """Llama, whose files have names of their own for the two biases."""

    types: ClassVar = ("internlm3",)
    aliases: ClassVar = {"qkv_bias": "attention_bias", "bias": "mlp_bias"}
    defaults: ClassVar = {"rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "head_dim": 128}


_CWM_ROPE = {
    **{"rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 8192,
}


class Cwm(Llama):
    """Llama with windows on three layers of four."""

    types: ClassVar = ("cwm",)
    defaults: ClassVar = {
        **{
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "sliding_window": 8192,
            "rope_parameters": _CWM_ROPE,
        },
        **{"head_dim": 128, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]},
    }

    def default_layer_types(self, layers: int) -> list[str]:
        """Every fourth layer, from the first on, sees all."""
        return [SLIDING if i % 4 else FULL for i in range(layers)]
