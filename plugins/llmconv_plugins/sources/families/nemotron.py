"""Nemotron and Minitron, and Jais 2."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Architecture
from llmconv_plugins.sources.families.llama import Llama


class Nemotron(Llama):
    """LayerNorms that multiply by 1 + w, RoPE on half of each head, an MLP of two projections with relu squared."""

    types: ClassVar = ("nemotron",)
    defaults: ClassVar = {
        **{"hidden_act": "relu2", "norm_eps": 1e-5, "partial_rotary_factor": 0.5, "max_position_embeddings": 4096},
        **{"bos_token_id": 2, "eos_token_id": 3},
    }
    epsilon: ClassVar = "norm_eps"
    norm_shift: ClassVar = 1.0

    def architecture(self) -> Architecture:
        """As Llama, with these."""
        return replace(super().architecture(), norm="layer", norm_bias=True, gated=False)


class Jais2(Llama):
    """Biases everywhere, LayerNorms, and an MLP of two projections with relu squared."""

    types: ClassVar = ("jais2",)
    defaults: ClassVar = {
        **{"hidden_act": "relu2", "layer_norm_eps": 1e-5, "attention_bias": True, "mlp_bias": True},
        **{"max_position_embeddings": 8192, "bos_token_id": 0, "eos_token_id": 150024},
    }
    epsilon: ClassVar = "layer_norm_eps"

    def architecture(self) -> Architecture:
        """As Llama, with these."""
        return replace(super().architecture(), norm="layer", norm_bias=True, gated=False)
