"""Qwen 2 and 3, and DeepSeek's distillations into Qwen 2."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Architecture
from llmconv_plugins.sources.families.compared import Compared


class Qwen2(Compared):
    """Llama with biases on queries, keys and values."""

    types: ClassVar = ("qwen2",)
    defaults: ClassVar = {"use_sliding_window": False, "max_position_embeddings": 32768}

    def architecture(self) -> Architecture:
        """Always with these biases, and none on o_proj."""
        return replace(super().architecture(), qkv_bias=True)


class Qwen3(Compared):
    """Llama with a norm over each head's queries and keys."""

    types: ClassVar = ("qwen3",)
    defaults: ClassVar = {"use_sliding_window": False, "max_position_embeddings": 32768, "head_dim": 128}

    def architecture(self) -> Architecture:
        """With biases where the file asks for them."""
        return replace(super().architecture(), qk_norm="head", **self.attention_biases)
