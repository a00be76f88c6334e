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
        file = self._file
        if not self.checkpoint.is_dir():
            raise CheckpointError(f"{self.checkpoint}: no such folder; set model.checkpoint or pass --checkpoint")
        try:
            values: Any = json.loads(file.read_text())
        except FileNotFoundError as error:
            raise CheckpointError(f"{file}: missing; is the download complete?") from error
        except ValueError as error:
            raise CheckpointError(f"{file}: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: not a table of keys; download it again")
        for key, allowed in _IMPLEMENTED.items():
            if key in values and values[key] not in allowed:
                raise CheckpointError(f"{file}: {key} = {values[key]!r} is not implemented by source 'llama'")
        rope = values.get("rope_parameters") or {}  # how transformers ≥ 5 writes it
        if not isinstance(rope, dict):
            raise CheckpointError(f"{file}: rope_parameters must be a table, not {rope!r}")
        if rope.get("rope_type", "default") != "default":
            raise CheckpointError(f"{file}: rope_type = {rope['rope_type']!r} is not implemented by source 'llama'")
        values.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        return values

    def _int(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self._json.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            bound = f" above {least - 1}" if least else ""
            raise CheckpointError(f"{self._file}: {key} must be a whole number{bound}, not {value!r}")
        return value

    def _float(self, key: str, default: float) -> float:
        value = self._json.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self._file}: {key} must be a number, not {value!r}")
        return float(value)

    def _eos(self) -> tuple[int, ...]:
        value = self._json.get("eos_token_id", 2)
        ids = value if isinstance(value, list) else [value]
        if not all(type(i) is int for i in ids):
            raise CheckpointError(f"{self._file}: eos_token_id must be a whole number or a list of them, not {value!r}")
        return tuple(ids)

    @property
    def _file(self) -> Path:
        return self.checkpoint / "config.json"

    @cached_property
    def _sizes(self) -> LlamaSizes:
        heads = self._int("num_attention_heads")
        kv_heads = self._int("num_key_value_heads", heads)
        if heads % kv_heads:
            raise CheckpointError(
                f"{self._file}: num_attention_heads = {heads} is no multiple of num_key_value_heads = {kv_heads}"
            )
        head_dim = self._int("head_dim", self._int("hidden_size") // heads)
        if head_dim % 2:
            raise CheckpointError(f"{self._file}: head_dim = {head_dim} is odd; RoPE rotates halves")
        return LlamaSizes(
            vocabulary=self._int("vocab_size"),
            hidden=self._int("hidden_size"),
            intermediate=self._int("intermediate_size"),
            layers=self._int("num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=self._float("rms_norm_eps", 1e-6),
            rope_theta=self._float("rope_theta", 10000.0),
            attention_bias=bool(self._json.get("attention_bias", False)),
        )

    def config(self) -> ModelConfig:
        """The model's sizes."""
        sizes = self._sizes
        return ModelConfig(
            family="llama",
            layers=sizes.layers,
            hidden=sizes.hidden,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            vocabulary=sizes.vocabulary,
            positions=self._int("max_position_embeddings", 2048),
            bos=self._int("bos_token_id", 1, least=0),
            eos=self._eos(),
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
        return [self._file, self.tokenizer().file]

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
