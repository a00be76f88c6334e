"""Granite 3, and what of Granite 4 has attention in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from llmconv import CheckpointError
from llmconv.sources import FULL, Architecture
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


class Granite4(Granite):
    """Granite whose gate and up projections are one tensor; those models that have no states and no experts."""

    types: ClassVar = ("granitemoehybrid",)
    aliases: ClassVar = {"layers_block_type": "layer_types"}
    defaults: ClassVar = {"intermediate_size": 11008, "shared_intermediate_size": 1024, "num_local_experts": 8}
    always: ClassVar = {
        **dict.fromkeys(("mamba_chunk_size", "mamba_conv_bias", "mamba_d_conv", "mamba_d_head", "mamba_d_state"), ...),
        **dict.fromkeys(("mamba_expand", "mamba_n_groups", "mamba_n_heads", "mamba_proj_bias", "time_step_limit"), ...),
        **dict.fromkeys(("num_experts_per_tok", "output_router_logits", "router_aux_loss_coef", "init_method"), ...),
        "normalization_function": "rmsnorm",
    }
    names: ClassVar = {"mlp": "shared_mlp", "down_proj": "output_linear"}
    fused: ClassVar = {"input_linear": ("gate_proj", "up_proj")}

    def architecture(self) -> Architecture:
        """With the width of the MLP that all tokens share, and RoPE where the file names it, which it must."""
        if self.keys.integer("num_local_experts", least=0):
            raise CheckpointError(f"{self.keys.path}: num_local_experts: mixtures of experts are not implemented")
        if self.keys.get("position_embedding_type") != "rope":
            raise self.keys.unsupported("position_embedding_type")
        return replace(super().architecture(), intermediate=self.keys.integer("shared_intermediate_size"))

    def layer_types(self, layers: int) -> list[str]:
        """Layers that see all positions, or none of the model is read."""
        types = self.keys.get("layer_types")
        if not isinstance(types, list) or len(types) != layers or not set(types) <= {"attention", FULL}:
            raise CheckpointError(
                f"{self.keys.path}: layer_types: some layers keep a state instead of keys and values, or none is "
                "described; only models with attention in every layer are implemented"
            )
        return [FULL] * layers
