"""Granite 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Architecture
from llmconv_plugins.sources.families.llama import Llama


class Granite(Llama):
    """Llama with constants: on the embedding, on what attention and MLP give, on the scores, on the logits."""

    types: ClassVar = ("granite",)

    def architecture(self) -> Architecture:
        """The scores' constant stands in place of 1 / sqrt(head_dim)."""
        return replace(super().architecture(), attention_scale=self.keys.positive("attention_multiplier", 1.0))

    def multipliers(self) -> Mapping[str, float]:
        """The others are folded into weights."""
        keys = self.keys
        residual, embedding = keys.positive("residual_multiplier", 1.0), keys.positive("embedding_multiplier", 1.0)
        logits = 1 / keys.positive("logits_scaling", 1.0)
        return {"embed_tokens": embedding, "o_proj": residual, "down_proj": residual, "lm_head": logits}
