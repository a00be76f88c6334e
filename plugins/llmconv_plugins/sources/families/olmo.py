"""OLMo 2 and 3."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Architecture, Keys
from llmconv_plugins.sources.families.compared import Compared


class Olmo2(Compared):
    """Llama with norms behind attention and MLP instead of before, and over all heads' queries and keys at once."""

    types: ClassVar = ("olmo2",)
    defaults: ClassVar = {"rms_norm_eps": 1e-5, "bos_token_id": None, "eos_token_id": 50279}
    names: ClassVar = {
        "attention_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }

    def architecture(self) -> Architecture:
        """With biases where the file asks for them."""
        found = replace(super().architecture(), norms_before=False, norms_after=True, qk_norm="whole")
        return replace(found, **self.attention_biases)


class Olmo3(Olmo2):
    """Windows on three layers of four; what stretches RoPE is for the others."""

    types: ClassVar = ("olmo3",)
    defaults: ClassVar = {"sliding_window": 4096, "sliding_window_pattern": 4, "rope_theta": 500000.0}

    def rope_tables(self) -> dict[str, Keys]:
        """One for each type of layer."""
        return self.rope_tables_of_types()
