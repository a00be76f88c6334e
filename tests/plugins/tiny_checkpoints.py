"""The same tiny random Llama as users hold it: safetensors, `pytorch_model*.bin`, Meta's `consolidated.*.pth`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VOCABULARY, HIDDEN = 24, 16
BASE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 44,  # two thirds of four times the width, as a multiple of 4: Meta's rule
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
META_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "layers",
}
COLUMN_PARALLEL, ROW_PARALLEL = ("wq", "wk", "wv", "w1", "w3", "output"), ("wo", "w2", "tok_embeddings")  # fairscale's


def config_of(changes: dict[str, Any]) -> dict[str, Any]:
    """config.json with changes; None removes a key."""
    return {key: value for key, value in {**BASE, **changes}.items() if value is not None}


def tensors_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights, the same for the same config."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, hidden, inner = config.get("head_dim", HIDDEN // heads), HIDDEN, config["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, rows, columns in (
            ("q_proj", heads * head_dim, hidden),
            ("k_proj", kv_heads * head_dim, hidden),
            ("v_proj", kv_heads * head_dim, hidden),
            ("o_proj", hidden, heads * head_dim),
        ):
            shapes[f"{layer}self_attn.{name}.weight"] = (rows, columns)
            if config.get("attention_bias"):
                shapes[f"{layer}self_attn.{name}.bias"] = (rows,)
        for name, rows, columns in (
            ("gate_proj", inner, hidden),
            ("up_proj", inner, hidden),
            ("down_proj", hidden, inner),
        ):
            shapes[f"{layer}mlp.{name}.weight"] = (rows, columns)
            if config.get("mlp_bias"):
                shapes[f"{layer}mlp.{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{name}.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (VOCABULARY, hidden)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for name, shape in shapes.items()}


def write(
    folder: Path, shards: int = 1, *, suffix: str = "safetensors", dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A checkpoint in Hugging Face's layout with random weights, `changes` made to its config.json."""
    folder.mkdir(exist_ok=True)
    config = config_of(changes)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of(config).items()}
    stem, save = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    if shards == 1:
        save(tensors, folder / f"{stem}.{suffix}")
        return folder
    files = [f"{stem}-{i + 1:05}-of-{shards:05}.{suffix}" for i in range(shards)]
    where = {name: files[i % shards] for i, name in enumerate(tensors)}
    for file in files:
        save({name: t for name, t in tensors.items() if where[name] == file}, folder / file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def params_of(config: dict[str, Any]) -> dict[str, Any]:
    """The config as Meta's params.json says it; keys at their defaults are left out."""
    params = {
        "dim": config["hidden_size"],
        "multiple_of": 4,
        "n_heads": config["num_attention_heads"],
        "n_layers": config["num_hidden_layers"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
    }
    if config["num_key_value_heads"] != config["num_attention_heads"]:
        params["n_kv_heads"] = config["num_key_value_heads"]
    return params


def meta_tensors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The random weights under Meta's names, each head's rows interleaved."""
    found = {}
    for name, tensor in tensors_of(config).items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)  # noqa: PLW2901
        for theirs, metas in META_NAMES.items():
            name = name.replace(theirs, metas)  # noqa: PLW2901
        found[name] = tensor
    return found


def write_meta(folder: Path, ranks: int = 1, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A checkpoint in Meta's layout with the weights that `write` gives."""
    folder.mkdir(exist_ok=True)
    config = config_of(changes)
    (folder / "params.json").write_text(json.dumps(params_of(config)))
    tensors = {name: tensor.to(dtype) for name, tensor in meta_tensors(config).items()}
    for rank in range(ranks):
        shard = {name: shard_of(name, tensor, rank, ranks) for name, tensor in tensors.items()}
        shard["rope.freqs"] = torch.ones(config["hidden_size"] // config["num_attention_heads"] // 2)
        torch.save(shard, folder / f"consolidated.{rank:02}.pth")
    return folder


def shard_of(name: str, tensor: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    kind = name.split(".")[-2]
    axis = 0 if kind in COLUMN_PARALLEL else 1 if kind in ROW_PARALLEL else None
    return tensor if axis is None else tensor.chunk(ranks, axis)[rank].clone()
