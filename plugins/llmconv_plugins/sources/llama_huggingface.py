"""Llama in Hugging Face's layout: config.json with safetensors or pytorch_model*.bin, single or sharded."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmconv import CheckpointError
from llmconv.weights import PickleStore, SafetensorsStore, Stored, WeightStore
from llmconv_plugins.sources.json_file import JsonFile
from llmconv_plugins.sources.llama_layout import Description, LlamaLayout, check_heads
from llmconv_plugins.sources.llama_module import LlamaSizes

# Keys of config.json that change what the model computes, with the values that the module implements.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
}
GENERATION = "generation_config.json"


class HuggingFaceLlama(LlamaLayout):
    """Fields of config.json that the module does not implement are errors that name them."""

    config_name = "config.json"

    @cached_property
    def _json(self) -> JsonFile:
        found = JsonFile.read(self.file)
        for key, allowed in _IMPLEMENTED.items():
            if key in found.values and found.values[key] not in allowed:
                raise found.unsupported(key)
        rope = found.values.get("rope_parameters") or {}  # how transformers ≥ 5 writes it
        if not isinstance(rope, dict):
            raise CheckpointError(f"{self.file}: rope_parameters must be a table, not {rope!r}")
        if rope.get("rope_type", "default") != "default":
            raise JsonFile(self.file, rope).unsupported("rope_type")
        return JsonFile(self.file, {"rope_theta": rope.get("rope_theta", 10000.0), **found.values})

    def _eos(self) -> tuple[int, ...]:
        """Every id that ends a text: chat models often name their own in generation_config.json alone."""
        ids = _end_ids(self._json, 2)
        generation = self.folder / GENERATION
        if generation.is_file():
            ids += _end_ids(JsonFile.read(generation), [])
        return tuple(dict.fromkeys(ids))

    def describe(self) -> Description:
        """The model's sizes."""
        config = self._json
        heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
        kv_heads = config.integer("num_key_value_heads", heads)
        head_dim = config.integer("head_dim", hidden // heads)
        check_heads(config, ("num_attention_heads", heads), ("num_key_value_heads", kv_heads), head_dim)
        sizes = LlamaSizes(
            vocabulary=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=config.integer("num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.number("rms_norm_eps", 1e-6),
            rope_theta=config.number("rope_theta", 10000.0),
            attention_bias=bool(config.values.get("attention_bias", False)),
        )
        positions = config.integer("max_position_embeddings", 2048)
        return Description(sizes, positions, config.integer("bos_token_id", 1, least=0), self._eos())

    def open(self) -> WeightStore:
        """The safetensors files, or the pickle files of a folder without safetensors."""
        if files := self._files("model", "safetensors"):
            return SafetensorsStore(files)
        if files := self._files("pytorch_model", "bin"):
            return PickleStore(files)
        return SafetensorsStore([self.folder / "model.safetensors"])  # which says that it is missing

    def weight(self, name: str) -> Stored:
        """The tensor under `model.`, lm_head apart; a tied lm_head is a second name for the embedding."""
        if name == "lm_head.weight" and self._json.values.get("tie_word_embeddings", False):
            name = "embed_tokens.weight"
        return Stored(name if name.startswith("lm_head.") else f"model.{name}")

    def _files(self, stem: str, suffix: str) -> list[Path]:
        """The files of one kind: what the index names, else the single file, else the shards that lie there."""
        index, single = self.folder / f"{stem}.{suffix}.index.json", self.folder / f"{stem}.{suffix}"
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                return [self.folder / shard for shard in shards]
            except (ValueError, LookupError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{index}: damaged; download it again") from error
        return [single] if single.is_file() else sorted(self.folder.glob(f"{stem}-*-of-*.{suffix}"))

    def reference(self) -> nn.Module | str:
        """The same checkpoint in transformers, float32."""
        try:
            from transformers import LlamaForCausalLM  # noqa: PLC0415  an extra, and 2 s to import
            from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415  likewise
        except ImportError:
            return "pip install llmconv[verify]"
        disable_progress_bar()  # type: ignore[no-untyped-call]  # llmconv has its own
        model = LlamaForCausalLM.from_pretrained(self.folder, dtype=torch.float32, local_files_only=True)
        return _LogitsOnly(model)  # which from_pretrained has set to evaluate


def _end_ids(file: JsonFile, default: int | list[int]) -> list[int]:
    value = file.values.get("eos_token_id")
    value = default if value is None else value
    ids = list(value) if isinstance(value, list) else [value]
    if not all(type(i) is int for i in ids):
        raise CheckpointError(f"{file.path}: eos_token_id must be a whole number or a list of them, not {value!r}")
    return ids


class _LogitsOnly(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids.long()).logits
        return logits
