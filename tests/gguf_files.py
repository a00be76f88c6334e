"""Small GGUF files as llama.cpp's converter writes them: a random Llama and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers import pre_tokenizers

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, HEAD = 64, 96, 4, 2, 2, 16
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(merges: tuple[str, ...] = ("l i", "s t", "t h", "Ġ th")) -> dict[str, Any]:
    """A byte-level vocabulary: control tokens, the alphabet, what merges make."""
    tokens = [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(m.replace(" ", "") for m in merges)]
    kinds = [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL))
    return {"model": "gpt2", "pre": "smollm", "tokens": tokens, "kinds": kinds, "merges": list(merges)}


def pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from RoPE's halves to llama.cpp's pairs, by its converter's own formula."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def tensors(vocabulary: int, tied: bool = True) -> dict[str, np.ndarray]:
    """Random weights under llama.cpp's names, q and k in halves still."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> np.ndarray:
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).numpy()

    found = {"token_embd.weight": random(vocabulary, HIDDEN), "output_norm.weight": random(HIDDEN) + 1}
    if not tied:
        found["output.weight"] = random(vocabulary, HIDDEN)
    for i in range(LAYERS):
        layer = f"blk.{i}."
        found |= {
            f"{layer}attn_norm.weight": random(HIDDEN) + 1,
            f"{layer}ffn_norm.weight": random(HIDDEN) + 1,
            f"{layer}attn_q.weight": random(HEADS * HEAD, HIDDEN),
            f"{layer}attn_k.weight": random(KV_HEADS * HEAD, HIDDEN),
            f"{layer}attn_v.weight": random(KV_HEADS * HEAD, HIDDEN),
            f"{layer}attn_output.weight": random(HIDDEN, HEADS * HEAD),
            f"{layer}ffn_gate.weight": random(INNER, HIDDEN),
            f"{layer}ffn_up.weight": random(INNER, HIDDEN),
            f"{layer}ffn_down.weight": random(HIDDEN, INNER),
        }
    return found


def write(
    file: Path,
    *,
    kind: Kind = Kind.F16,
    architecture: str = "llama",
    tokenizer: dict[str, Any] | None = None,
    tied: bool = True,
    extra: dict[str, np.ndarray] | None = None,
    metadata: dict[str, Any] | None = None,
    split: int = 0,
) -> Path:
    """Write a file; matrices of the given kind, all else float32.

    Args:
        extra: further tensors.
        metadata: further keys, numbers and texts; None leaves a key of the tokenizer out.
        split: tensors a file of a set, whose first file is given back.
    """
    tokenizer = tokenizer or byte_level()
    sizes = {
        "block_count": LAYERS,
        "context_length": 256,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "rope.freq_base": 50000.0,
        "rope.dimension_count": HEAD,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    given = {**{f"{architecture}.{name}": value for name, value in sizes.items()}, **(metadata or {})}
    stored = {**tensors(len(tokenizer["tokens"]), tied), **(extra or {})}
    for name, value in stored.items():
        if heads := {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2]):
            stored[name] = pairs(value, heads)
    return write_tensors(file, architecture, given, stored, tokenizer, kind, split)


def write_tensors(
    file: Path,
    architecture: str,
    metadata: dict[str, Any],
    stored: dict[str, np.ndarray],
    tokenizer: dict[str, Any],
    kind: Kind = Kind.F32,
    split: int = 0,
) -> Path:
    """Write these as they are, with a tokenizer; as of `write`."""
    options = {"split_max_tensors": split} if split else {}
    writer = gguf.GGUFWriter(str(file), architecture, **options)
    writer.add_tokenizer_model(tokenizer["model"])
    if "pre" in tokenizer:
        writer.add_tokenizer_pre(tokenizer["pre"])
    writer.add_token_list(tokenizer["tokens"])
    writer.add_token_types(tokenizer["kinds"])
    if "merges" in tokenizer:
        writer.add_token_merges(tokenizer["merges"])
    if "scores" in tokenizer:
        writer.add_token_scores(tokenizer["scores"])
    given: dict[str, Any] = {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
        **metadata,
    }
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for name, value in given.items():
        if value is not None:
            {**adders, list: writer.add_array}[type(value)](name, value)
    for name, value in stored.items():
        if value.ndim > 1 and kind != Kind.F32:
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(file.parent.glob(f"{file.stem}-00001-of-*.gguf"))[0] if split else file
