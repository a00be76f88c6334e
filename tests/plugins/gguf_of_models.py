"""A tiny model of transformers in a GGUF file, written by the rules of llama.cpp's converter (its conversion/*.py)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf_files import byte_level, pairs, write_tensors
from numpy.typing import NDArray
from torch import nn

PERMUTED = ("llama", "granite", "smollm3", "arcee")  # LlamaModel and what derives from it
ADD_ONE = ("gemma", "gemma2", "gemma3", "nemotron")
WINDOWS = ("gemma2", "gemma3", "cohere2", "exaone4", "olmo2", "phi3")
# architectures whose class does not call the base's set_gguf_parameters, or writes a key of it later
NO_THETA = ("gemma", "gemma2", "phi2", "stablelm")
NO_HEAD_DIM = ("chatglm", "phi2", "phi3", "stablelm")
NO_SCALING = ("cohere2", "nemotron", "hunyuan-dense")
ATTRIBUTES = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "embedding_scale": ("embedding_multiplier",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "residual_scale": ("residual_multiplier",),
    "use_parallel_residual": ("use_parallel_residual",),
}
YARN = {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}


def write_model(file: Path, model: nn.Module, architecture: str, *, joined: bool = False, **changes: Any) -> Path:
    """Write all of a model.

    Args:
        joined: queries, keys and values in one tensor (the converter's --fuse-qkv).
        changes: keys of the architecture, __ for a dot; None for those that are left out.
    """
    config: Any = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    stored = rope_factors(config, architecture)
    for name, tensor in model.state_dict().items():
        value, word = tensor.numpy(), name.split(".")[-2]
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture in PERMUTED and word in heads:
            value = pairs(value, heads[word])
        if architecture in ADD_ONE and name.endswith("norm.weight"):
            value = value + 1
        stored[names.get_name(name, try_suffixes=(".weight", ".bias"))] = value
    for i in range(config.num_hidden_layers if joined else 0):
        for last in ("weight", "bias"):
            parts = [stored.pop(f"blk.{i}.attn_{part}.{last}") for part in "qkv"]
            stored[f"blk.{i}.attn_qkv.{last}"] = np.concatenate(parts)
    said = {**keys(config, architecture), **{key.replace("__", "."): value for key, value in changes.items()}}
    full = byte_level(merges=())
    tokens = {name: full[name][: config.vocab_size] for name in ("tokens", "kinds")}
    given = {f"{architecture}.{key}": value for key, value in said.items()} | {"tokenizer.ggml.padding_token_id": 0}
    return write_tensors(file, architecture, given, stored, {**full, **tokens})


def keys(config: Any, architecture: str) -> dict[str, Any]:
    """What is said of the sizes."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = rope_of(config)
    said: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }
    if architecture not in NO_HEAD_DIM:
        said |= {"attention.key_length": head, "attention.value_length": head}
    if architecture not in NO_THETA:
        said["rope.freq_base"] = float(rope["rope_theta"])
    if architecture in PERMUTED or rope.get("partial_rotary_factor") is not None:
        said["rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1.0))
    if architecture == "phi3":
        said["rope.scaling.original_context_length"] = config.original_max_position_embeddings
    for key, attributes in ATTRIBUTES.items():
        found = [getattr(config, name) for name in attributes if getattr(config, name, None) is not None]
        if found:
            said[key] = found[0]
    return said | scaling(rope, architecture) | windows(config, architecture)


def rope_of(config: Any) -> dict[str, Any]:
    parameters = config.rope_parameters
    found: dict[str, Any] = parameters.get("full_attention", parameters)
    return found


def scaling(rope: dict[str, Any], architecture: str) -> dict[str, Any]:
    if architecture in NO_SCALING:
        return {"rope.scaling.type": "none"}
    if rope["rope_type"] not in ("linear", "yarn"):
        return {}
    said = {"type": rope["rope_type"], "factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        said["original_context_length"] = rope["original_max_position_embeddings"]
        said |= {key: rope[name] for name, key in YARN.items() if rope.get(name) is not None}
    return {f"rope.scaling.{key}": value for key, value in said.items()}


def windows(config: Any, architecture: str) -> dict[str, Any]:
    if architecture not in WINDOWS or not hasattr(config, "sliding_window"):
        return {}
    said: dict[str, Any] = {"attention.sliding_window": config.sliding_window or 0}
    if architecture in ("exaone4", "olmo2"):
        said["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config.layer_types]
    if architecture == "gemma3":
        said["rope.freq_base_swa"] = config.rope_parameters["sliding_attention"]["rope_theta"]
    return said


def rope_factors(config: Any, architecture: str) -> dict[str, NDArray[np.float32]]:
    """The tensors of Llama 3's scaling, and of longrope."""
    rope = rope_of(config)
    if rope["rope_type"] == "longrope":
        names = {"rope_factors_short.weight": "short_factor", "rope_factors_long.weight": "long_factor"}
        return {name: np.asarray(rope[key], np.float32) for name, key in names.items()}
    if rope["rope_type"] != "llama3":
        return {}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    lengths = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float32) / head)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = ((rope["original_max_position_embeddings"] / lengths - low) / (high - low)).clamp(0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / factor + smooth)).numpy()}
