"""A tiny random checkpoint of each model type, as transformers makes and saves it; sizes are odd where they may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from llmconv import Recipe, Registry, Wish, apply, choose

VOCABULARY, POSITIONS = 96, 128
PHONE = "Galaxy S23 Ultra"
HELD_OUT = Path(__file__).parents[2] / "recipes" / "tiny_llama" / "heldout.txt"
PAGE = 1000  # characters, and so tokens: some windows
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WIDE = {"head_dim": 20}  # four of them are wider than the stream
EVEN = {"hidden_size": 64}  # heads of 16, a quarter of which is turned
WINDOW = {"sliding_window": POSITIONS}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SHORT, LONG = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5], [2.0, 2.3, 2.9, 3.8, 5.0, 6.5]
SCALARS = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
}

# name -> changes of the sizes; what stands before the first "-" is the model type
TINY: dict[str, dict[str, Any]] = {
    "llama": WIDE,
    "llama-biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama-llama3": {"rope_scaling": LLAMA3},
    "llama-linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-yarn": {"rope_scaling": {**YARN, "mscale": 0.9, "mscale_all_dim": 0.8, "beta_fast": 16.0}},
    "llama-dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": WIDE,
    "mistral": {**WIDE, "sliding_window": None},
    "ministral": {**WIDE, **WINDOW, "layer_types": ["full_attention", *["sliding_attention"] * 3]},
    "phi3": {},
    "phi3-longrope": {
        "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        "original_max_position_embeddings": POSITIONS - 8,
    },
    "phi3-partial": {**EVEN, "partial_rotary_factor": 0.75},
    "smollm3": {"tie_word_embeddings": True},
    "granite": {**SCALARS, "tie_word_embeddings": True},
    "gemma3_text": {**WIDE, **WINDOW, "query_pre_attn_scalar": 24, "num_hidden_layers": 6},
    "gemma2": {
        **WIDE,
        **WINDOW,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "vaultgemma": {**WIDE, **WINDOW, "query_pre_attn_scalar": 24},
    "gemma": WIDE,
    "olmo2": {},
    "olmo3": {**WINDOW, "rope_scaling": {**YARN, "attention_factor": 1.2}},
    "exaone": {"rope_scaling": LLAMA3},
    "exaone4": {**WINDOW, "rope_scaling": LLAMA3},
    "exaone4-full": {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    "glm": WIDE,
    "glm4": {**WIDE, "attention_bias": True},
    "stablelm": {**EVEN, "use_qkv_bias": True},
    "stablelm-parallel": {**EVEN, "use_parallel_residual": True, "qk_layernorm": True},
    "hunyuan_v1_dense": {**WIDE, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
    "ernie4_5": {**WIDE, "use_bias": True},
    "cohere2": WINDOW,
    "arcee": {},
    "phi": {**EVEN, "partial_rotary_factor": 0.5},
    "starcoder2": {},
    "nemotron": {**EVEN, "partial_rotary_factor": 0.5},
    "helium": {"head_dim": 12},
    "seed_oss": WIDE,
    "cwm": {**WIDE, "sliding_window": POSITIONS, "rope_parameters": {**LLAMA3, "rope_theta": 1e6}},
    "internlm3": {"head_dim": 12, "bias": True, "qkv_bias": True},
    "jais2": {},
    "granitemoehybrid": {
        **SCALARS,
        **{"layer_types": ["attention"] * 4, "num_local_experts": 0, "shared_intermediate_size": 40},
        **{"position_embedding_type": "rope", "mamba_n_heads": 8, "tie_word_embeddings": True},
    },
    "ministral3": {
        **WIDE,
        "rope_parameters": {
            **{**YARN, "rope_theta": 1e6, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
            "original_max_position_embeddings": 112,
        },
    },
}


def make(name: str, **changes: Any) -> nn.Module:
    """A model with weights so large that no part of it could be missed."""
    config = AutoConfig.for_model(name.partition("-")[0], **{**SIZES, **TINY[name], **changes})
    torch.manual_seed(1)
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                deviation = 0.25 if "embed" in parameter_name else 1.3 * parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn_like(parameter) * deviation)
    model.tie_weights()  # type: ignore[operator]
    return model


def write(name: str, folder: Path) -> nn.Module:
    """Save it as transformers does, and give the model that was saved."""
    model = make(name)
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of as many ids as the models have: one for each character of plain text, one for all others."""
    named = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = "\n" + "".join(map(chr, range(32, 127)))
    vocabulary = {text: i for i, text in enumerate([*named, *letters][:VOCABULARY])}
    tokenizer = Tokenizer(BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(named)
    tokenizer.save(str(folder / "tokenizer.json"))


def unproved(checkpoint: Path, output: Path, registry: Registry) -> list[str]:
    """Convert a checkpoint up to ONNX without a recipe, and give the checks of its proof, on a page, that failed."""
    chosen = choose(Wish(str(checkpoint), PHONE, backend="onnx"), registry=registry)
    page = checkpoint.parent / "page.txt"
    page.write_text(HELD_OUT.read_text()[:PAGE])
    changes = [f"output.folder='{output}'", f"verify.text='{page}'"]
    recipe = Recipe.loads(chosen.text, checkpoint.name, checkpoint.parent, changes)
    proof = apply(recipe, registry=registry, verify=True).report["proof"]
    return [f"{c['name']}: {c['measured']}, must be {c['bound']}" for c in proof if c["passed"] is False]
