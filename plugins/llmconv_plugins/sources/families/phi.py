"""Phi 1 to 2, and Phi 3 to 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from llmconv.sources import Architecture, Keys
from llmconv_plugins.sources.families.compared import Compared


class Phi3(Compared):
    """Llama with fused projections; longer texts by factors of RoPE's frequencies, turned in part in Phi 4 mini."""

    types: ClassVar = ("phi3",)
    defaults: ClassVar = {
        **{"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
        **{"bos_token_id": 1, "eos_token_id": 32000},
    }
    always: ClassVar = {"full_attn_mod": 1, "interpolate_factor": 1}
    fused: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

    def rope_tables(self) -> dict[str, Keys]:
        """Files of the first Phi 3 call longrope "su" or "yarn"."""
        tables = super().rope_tables()
        return {kind: replace(table, values=_renamed(table.values)) for kind, table in tables.items()}


def _renamed(table: Mapping[str, object]) -> dict[str, object]:
    return {k: "longrope" if k in ("type", "rope_type") and v in ("su", "yarn") else v for k, v in table.items()}


class Phi(Compared):
    """A shared LayerNorm before attention and an MLP of two projections, side by side; biases everywhere."""

    types: ClassVar = ("phi",)
    defaults: ClassVar = {
        **{"layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5},
        **{"bos_token_id": 1, "eos_token_id": 2},
    }
    names: ClassVar = {"o_proj": "dense", "up_proj": "fc1", "down_proj": "fc2", "norm": "final_layernorm"}
    epsilon: ClassVar = "layer_norm_eps"

    def architecture(self) -> Architecture:
        """Attention and MLP read the same."""
        found = replace(super().architecture(), norm="layer", norm_bias=True, parallel="shared", gated=False)
        return replace(found, qkv_bias=True, o_bias=True, mlp_bias=True, head_bias=True)
