"""Mistral and Ministral."""

from __future__ import annotations

from typing import Any, ClassVar

from llmconv.sources import Rope
from llmconv_plugins.sources.families.compared import Compared


class Mistral(Compared):
    """Llama whose every layer sees a window, unless the file says null."""

    types: ClassVar[tuple[str, ...]] = ("mistral",)
    defaults: ClassVar = {
        **{"sliding_window": 4096, "max_position_embeddings": 131072, "num_key_value_heads": 8},
        **{"bos_token_id": 1, "eos_token_id": 2},
    }


class Ministral(Mistral):
    """Some layers see a window, by `layer_types`."""

    types: ClassVar = ("ministral",)


_STRETCHED: dict[str, Any] = {
    **{"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384},
    **{"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
}


class Ministral3(Mistral):
    """Mistral without windows, whose queries grow beyond the original length: up to there they are as they are."""

    types: ClassVar = ("ministral3", "mistral3")
    defaults: ClassVar = {
        **{"sliding_window": None, "rms_norm_eps": 1e-5, "max_position_embeddings": 262144, "head_dim": 128},
        "rope_parameters": _STRETCHED,
    }
    text: ClassVar = "text_config"

    def ropes(self, head_dim: int) -> dict[str, tuple[Rope, int]]:
        """Up to the length from which queries grow."""
        found = super().ropes(head_dim)
        for kind, table in self.rope_tables().items():
            if table.get("llama_4_scaling_beta"):
                rope, limit = found[kind]
                found[kind] = rope, min(limit, table.integer("original_max_position_embeddings"))
        return found
