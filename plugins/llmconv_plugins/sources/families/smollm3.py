"""SmolLM 3."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from llmconv.sources import FULL, SLIDING, Architecture
from llmconv_plugins.sources.families.llama import Llama


class SmolLM3(Llama):
    """Llama whose every fourth layer is not turned by RoPE."""

    types: ClassVar = ("smollm3",)
    defaults: ClassVar = {
        **{"rope_theta": 2e6, "use_sliding_window": False, "tie_word_embeddings": True, "no_rope_layer_interval": 4},
        **{"max_position_embeddings": 32768, "bos_token_id": 128000, "eos_token_id": 128001},
    }

    def architecture(self) -> Architecture:
        """Where `no_rope_layers` has a 1, RoPE turns."""
        found = super().architecture()
        every = self.keys.integer("no_rope_layer_interval")
        turned = self.keys.get("no_rope_layers", [int((i + 1) % every != 0) for i in range(found.layers)])
        if not isinstance(turned, list) or len(turned) != found.layers:
            raise self.keys.unsupported("no_rope_layers")
        return replace(found, rope_of=tuple(0 if turn else None for turn in turned))

    def default_layer_types(self, layers: int) -> list[str]:
        """Where there are windows, some layer has one."""
        return [FULL, *[SLIDING] * (layers - 1)]
