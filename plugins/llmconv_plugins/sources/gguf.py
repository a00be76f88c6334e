"""Llama in a GGUF file, as llama.cpp's converter writes it: read as the Hugging Face folder that it tells of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmconv import CheckpointError
from llmconv.sources import Family, Keys
from llmconv.tokenizer import Tokenizer
from llmconv.weights import Checkpoint, Expression, GGUFStore, Halved, Stored, set_of, shard_number
from llmconv_plugins.sources.decoder import DecoderModule
from llmconv_plugins.sources.huggingface import GENERATION, HuggingFace, in_transformers

SUFFIX = ".gguf"
ARCHITECTURE = "llama"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

# `llama.` + key -> the key of config.json
_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
# likewise, with the values that change nothing; None stands for the size of a head
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.value_length": (None,),
    "rope.dimension_count": (None,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0, 0.0),
    "rope.scale_linear": (1.0, 0.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
}
_NAMES = {
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "norm": "output_norm",
    "layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_GROUPS = ("self_attn", "mlp")  # words of the module's names that llama.cpp's lack
_PAIRED = ("attn_q", "attn_k")  # rows in the order of RoPE on neighbours
_EOS, _ROLES = ("eos_token_id", "eot_token_id", "eom_token_id"), ("bos", "eos", "unknown", "padding")
ROPE_FREQS = "rope_freqs.weight"


class GGUF(HuggingFace):
    """A `.gguf` file, the first of a split set, or a folder with one of them.

    Keys of the architecture that are not known here are errors that name them: they may change what is computed.
    """

    def __init__(self, checkpoint: Path, families: Mapping[str, type[Family]]) -> None:
        super().__init__(checkpoint, families)
        self.file = checkpoint if checkpoint.is_file() else _only(checkpoint)
        self.folder = self.file.parent

    @cached_property
    def _store(self) -> GGUFStore:
        store = GGUFStore(set_of(self.file))
        if (found := store.metadata.get("general.architecture")) != ARCHITECTURE:
            raise CheckpointError(f"{self.file}: architecture {found!r} is not implemented")
        return store

    @cached_property
    def _tables(self) -> dict[str, dict[str, Any]]:
        """The small files of a Hugging Face folder, by name."""
        given = self._store.metadata
        tokens = {name.removeprefix("tokenizer.ggml."): value for name, value in given.items()}
        named = {role: tokens.get(f"{role}_token_id") for role in _ROLES}
        ends = [int(tokens[name]) for name in _EOS if tokens.get(name) is not None]
        talk: dict[str, Any] = {"add_bos_token": bool(self.tokenizer().begin)}
        for role, short in zip(_ROLES, ("bos", "eos", "unk", "pad"), strict=True):
            i = named[role]
            if i is not None and 0 <= i < len(tokens["tokens"]):
                talk[f"{short}_token"] = tokens["tokens"][i]
        if isinstance(template := given.get("tokenizer.chat_template"), str):
            talk["chat_template"] = template
        config = {**self._sizes(given), "bos_token_id": named["bos"], "eos_token_id": named["eos"]}
        return {self.config_name: config, TOKENIZER_CONFIG: talk, GENERATION: {"eos_token_id": ends or None}}

    def _sizes(self, given: Mapping[str, Any]) -> dict[str, Any]:
        prefix = f"{ARCHITECTURE}."
        own = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
        config: dict[str, Any] = {"model_type": "llama", "vocab_size": len(given.get("tokenizer.ggml.tokens", ()))}
        config |= {key: own[name] for name, key in _KEYS.items() if name in own}
        head = config.get("head_dim", own.get("embedding_length", 0) // max(1, own.get("attention.head_count", 1)))
        for name, value in own.items():
            allowed = [head if x is None else x for x in _NEUTRAL.get(name, ())]
            if name not in _KEYS and value not in allowed:
                raise CheckpointError(f"{self.file}: {prefix}{name} = {value!r} is not implemented")
        if isinstance(epsilon := config.get("rms_norm_eps"), float):
            config["rms_norm_eps"] = float(f"{epsilon:.6g}")  # stored in single precision
        config["tie_word_embeddings"] = "output.weight" not in self._store
        config["attention_bias"] = "blk.0.attn_q.bias" in self._store
        return config

    def table(self, name: str) -> Keys:
        """A file that the metadata stand for."""
        return Keys(self.file, self._tables[name])

    def has(self, name: str) -> bool:
        """Whether they stand for it."""
        return name in self._tables

    def files(self) -> Mapping[str, bytes]:
        """The Hugging Face folder's small files."""
        return self._files_made

    @cached_property
    def _files_made(self) -> Mapping[str, bytes]:
        made = {name: json.dumps(table, indent=1).encode() for name, table in self._tables.items()}
        return {**made, TOKENIZER: self.tokenizer().to_json().encode()}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.of_gguf(self._store.metadata, self.file)

    def open(self) -> Checkpoint:
        """The file's tensors.

        Raises:
            CheckpointError: it has one that the module lacks, or scales RoPE.
        """
        store = self._store
        if ROPE_FREQS in store and not torch.equal(factors := store.read(ROPE_FREQS), torch.ones_like(factors)):
            raise CheckpointError(f"{self.file}: {ROPE_FREQS} scales RoPE's frequencies, which is not implemented")
        with torch.device("meta"):
            parameters = [name for name, _ in DecoderModule(self.describe().architecture).named_parameters()]
        known = {tensor for name in parameters for tensor in self.weight(name, store).stored()}
        if beyond := [name for name in store.names if name not in known and name != ROPE_FREQS]:
            raise CheckpointError(f"{self.file}: tensor '{beyond[0]}' is not implemented")
        return store

    @cached_property
    def _head_dim(self) -> int:
        return self.describe().architecture.head_dim

    def weight(self, name: str, store: Checkpoint) -> Expression:
        """Under llama.cpp's words; queries' and keys' rows moved back from its pairs to RoPE's halves."""
        if name == "lm_head.weight" and self._json.values["tie_word_embeddings"]:
            name = "embed_tokens.weight"
        words = [_NAMES.get(word, word) for word in name.split(".") if word not in _GROUPS]
        tensor = Stored(".".join(words))
        return Halved(tensor, self._head_dim) if words[-2] in _PAIRED else tensor

    def reference(self) -> nn.Module | str:
        """The same file in transformers, which takes a set for its first file alone."""
        if len(self._store.files) > 1:
            return "transformers does not read a GGUF file that is split"
        return in_transformers(self.folder, gguf_file=self.file.name)


def _only(folder: Path) -> Path:
    """The one checkpoint of a folder."""
    found = [file for file in sorted(folder.glob(f"*{SUFFIX}")) if shard_number(file) == 1]
    if len(found) != 1:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{folder}: holds {len(found)} GGUF checkpoints ({names}); give the path of one file")
    return found[0]
