"""The Llama family in Hugging Face layout: config.json and safetensors, single or sharded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from llmconv import CheckpointError, ModelConfig, SafetensorsStore, Source, Tokenizer, WeightStore
from llmconv_plugins.sources.llama_module import Llama, LlamaSizes

# Keys of config.json that change what the model computes, with the values that the module implements.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
}


@dataclass(frozen=True)
class LlamaSource(Source):
    """Llama checkpoints; fields of config.json that the module does not implement are errors that name them."""

    name: ClassVar[str] = "llama"

    @cached_property
    def _json(self) -> dict[str, Any]:
        file = self.checkpoint / "config.json"
        if not self.checkpoint.is_dir():
            raise CheckpointError(f"{self.checkpoint}: no such folder; set model.checkpoint or pass --checkpoint")
        try:
            values: dict[str, Any] = json.loads(file.read_text())
        except FileNotFoundError as error:
            raise CheckpointError(f"{file}: missing; is the download complete?") from error
        except ValueError as error:
            raise CheckpointError(f"{file}: not JSON ({error})") from error
        for key, allowed in _IMPLEMENTED.items():
            if key in values and values[key] not in allowed:
                raise CheckpointError(f"{file}: {key} = {values[key]!r} is not implemented by source 'llama'")
        rope: dict[str, Any] = values.get("rope_parameters") or {}  # how transformers ≥ 5 writes it
        if rope.get("rope_type", "default") != "default":
            raise CheckpointError(f"{file}: rope_type = {rope['rope_type']!r} is not implemented by source 'llama'")
        values.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        return values

    def _int(self, key: str, default: int | None = None) -> int:
        value = self._json.get(key, default)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise CheckpointError(f"{self.checkpoint / 'config.json'}: {key} must be a whole number, not {value!r}")
        return value

    @cached_property
    def _sizes(self) -> LlamaSizes:
        heads = self._int("num_attention_heads")
        return LlamaSizes(
            vocabulary=self._int("vocab_size"),
            hidden=self._int("hidden_size"),
            intermediate=self._int("intermediate_size"),
            layers=self._int("num_hidden_layers"),
            heads=heads,
            kv_heads=self._int("num_key_value_heads", heads),
            head_dim=self._int("head_dim", self._int("hidden_size") // heads),
            norm_eps=float(self._json.get("rms_norm_eps", 1e-6)),
            rope_theta=float(self._json["rope_theta"]),
            attention_bias=bool(self._json.get("attention_bias", False)),
        )

    def config(self) -> ModelConfig:
        """The model's sizes."""
        sizes, eos = self._sizes, self._json.get("eos_token_id", 2)
        return ModelConfig(
            family="llama",
            layers=sizes.layers,
            hidden=sizes.hidden,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            vocabulary=sizes.vocabulary,
            positions=self._int("max_position_embeddings", 2048),
            bos=self._int("bos_token_id", 1),
            eos=tuple(eos) if isinstance(eos, list) else (int(eos),),
            rope_theta=sizes.rope_theta,
        )

    def module(self) -> nn.Module:
        """The module, without data."""
        with torch.device("meta"):
            return Llama(self._sizes)

    def weights(self) -> WeightStore:
        """The checkpoint's tensors by the module's names; a tied lm_head is a second name for the embedding."""
        module = self.module()
        rename = {
            name: name if name.startswith("lm_head.") else f"model.{name}" for name, _ in module.named_parameters()
        }
        if self._json.get("tie_word_embeddings", False):
            rename["lm_head.weight"] = rename["embed_tokens.weight"]
        store = SafetensorsStore(self._files(), rename)
        for name, parameter in module.named_parameters():
            if store.shape(name) != tuple(parameter.shape):
                raise CheckpointError(
                    f"{self.checkpoint}: tensor '{rename[name]}' has shape {list(store.shape(name))}, "
                    f"config.json asks for {list(parameter.shape)}"
                )
        return store

    def _files(self) -> list[Path]:
        index = self.checkpoint / "model.safetensors.index.json"
        if not index.is_file():
            return [self.checkpoint / "model.safetensors"]
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index}: damaged; download it again") from error
        return [self.checkpoint / shard for shard in shards]

    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the checkpoint's folder."""
        return Tokenizer.find(self.checkpoint)

    def description(self) -> list[Path]:
        """config.json and the tokenizer."""
        return [self.checkpoint / "config.json", self.tokenizer().file]

    def reference(self) -> nn.Module | None:
        """The same checkpoint in transformers, float32, or None where transformers is not installed."""
        try:
            from transformers import LlamaForCausalLM  # noqa: PLC0415  an extra, and 2 s to import
        except ImportError:
            return None
        model = LlamaForCausalLM.from_pretrained(self.checkpoint, dtype=torch.float32, local_files_only=True)
        return _LogitsOnly(model)  # which from_pretrained has set to evaluate


class _LogitsOnly(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids.long()).logits
        return logits
