"""Llama in Hugging Face's layout: config.json with safetensors or pytorch_model*.bin, single or sharded."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext, redirect_stderr
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmconv import CheckpointError, Sampling
from llmconv.weights import Expression, PickleStore, SafetensorsStore, Stored, WeightStore
from llmconv_plugins.sources.json_file import JsonFile
from llmconv_plugins.sources.llama_layout import Description, LlamaLayout, check_heads
from llmconv_plugins.sources.llama_module import LlamaSizes

# Keys of config.json that change what the model computes, with the values that the module implements.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
}
_ROPE, _KINDS = ("rope_parameters", "rope_scaling"), ("rope_type", "type")  # of transformers ≥ 5, and before
GENERATION, ADAPTER = "generation_config.json", "adapter_config.json"
logger = logging.getLogger(__name__)


class HuggingFaceLlama(LlamaLayout):
    """Fields of config.json that the module does not implement are errors that name them."""

    config_name = "config.json"

    def table(self, name: str) -> JsonFile:
        """A file of the checkpoint.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        adapter = self.folder / ADAPTER
        if name == self.config_name and not self.file.is_file() and adapter.is_file():
            base = JsonFile.read(adapter).values.get("base_model_name_or_path")
            raise CheckpointError(
                f"{self.folder}: an adapter alone, of {base or 'a base model that it does not name'}; "
                "merge it into that model and give the result"
            )
        return JsonFile.read(self.folder / name)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a file."""
        return (self.folder / name).is_file()

    @cached_property
    def _json(self) -> JsonFile:
        found = self.table(self.config_name)
        for key, allowed in _IMPLEMENTED.items():
            if key in found.values and found.values[key] not in allowed:
                raise found.unsupported(key)
        theta = found.values.get("rope_theta")
        for key in reversed(_ROPE):  # the newer one wins, as in transformers
            rope = found.values.get(key) or {}
            if not isinstance(rope, dict):
                raise CheckpointError(f"{self.file}: {key} must be a table, not {rope!r}")
            if any(rope.get(kind, "default") != "default" for kind in _KINDS):
                raise found.unsupported(key)
            theta = rope.get("rope_theta", theta)
        return JsonFile(self.file, {**found.values, "rope_theta": 10000.0 if theta is None else theta})

    @cached_property
    def _generation(self) -> JsonFile:
        """What generation_config.json says; nothing where there is none."""
        return self.table(GENERATION) if self.has(GENERATION) else JsonFile(self.folder / GENERATION, {})

    def _eos(self) -> tuple[int, ...]:
        """Every id that ends a text: what generation_config.json says, else config.json; null is none."""
        ids = _end_ids(self._generation)
        if not ids:  # 2 is what transformers' LlamaConfig takes
            ids = _end_ids(self._json) if "eos_token_id" in self._json.values else [2]
        return tuple(dict.fromkeys(ids))

    def _bos(self) -> int | None:
        config = self._json
        if config.values.get("bos_token_id", 1) is None:
            return None
        return config.integer("bos_token_id", 1, least=0)

    def _sampling(self) -> Sampling:
        """As generation_config.json asks for it; greedy where it does not, as in transformers."""
        asked = self._generation
        if not asked.values.get("do_sample"):
            return Sampling()
        found = {key: asked.values.get(key) for key in ("temperature", "top_k", "top_p")}
        temperature = 1.0 if found["temperature"] is None else asked.number("temperature", 1.0)
        top_k = 50 if found["top_k"] is None else asked.integer("top_k", 50, least=0)
        top_p = 1.0 if found["top_p"] is None else asked.number("top_p", 1.0)
        return Sampling(temperature, top_k, top_p)

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
        return Description(sizes, positions, self._bos(), self._eos(), self._sampling())

    def open(self) -> WeightStore:
        """The safetensors files, or the pickle files of a folder without safetensors."""
        return self._opened

    @cached_property
    def _opened(self) -> SafetensorsStore | PickleStore:
        if files := self._files("model", "safetensors"):
            return SafetensorsStore(files)
        if files := self._files("pytorch_model", "bin"):
            return PickleStore(files)
        return SafetensorsStore([self.folder / "model.safetensors"])  # which says that it is missing

    def weight(self, name: str) -> Expression:
        """The tensor under `model.`, lm_head apart; a tied lm_head that is not stored is the embedding."""
        if (
            name == "lm_head.weight"
            and name not in self._opened
            and self._json.values.get("tie_word_embeddings", False)
        ):
            name = "embed_tokens.weight"
        return Stored(name if name.startswith("lm_head.") else f"model.{name}")

    def _files(self, stem: str, suffix: str) -> list[Path]:
        """The files of one kind: what the index names, else the single file, else the shards that lie there.

        An index whose files are not there, beside the single file, is left over from another form of the model.
        """
        index, single = self.folder / f"{stem}.{suffix}.index.json", self.folder / f"{stem}.{suffix}"
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                files = [self.folder / shard for shard in shards]
            except (ValueError, LookupError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{index}: damaged; download it again") from error
            if single.is_file() and not any(file.is_file() for file in files):
                logger.warning("%s: names files that are not there; %s is read instead", index, single.name)
                return [single]
            return files
        return [single] if single.is_file() else sorted(self.folder.glob(f"{stem}-*-of-*.{suffix}"))

    def reference(self) -> nn.Module | str:
        """The same checkpoint in transformers, float32."""
        return in_transformers(self.folder)


def in_transformers(folder: Path, **how: Any) -> nn.Module | str:
    """A checkpoint as transformers reads it: ids to logits, float32."""
    try:
        from transformers import LlamaForCausalLM  # noqa: PLC0415  an extra, and 2 s to import
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415  likewise
    except ImportError:
        return "pip install llmconv[verify]"
    disable_progress_bar()  # type: ignore[no-untyped-call]  # llmconv has its own
    with redirect_stderr(StringIO()) if how else nullcontext():  # its reader of GGUF has a progress bar of its own
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **how)
    return _LogitsOnly(model)  # which from_pretrained has set to evaluate


def _end_ids(file: JsonFile) -> list[int]:
    value = file.values.get("eos_token_id")
    ids = [] if value is None else list(value) if isinstance(value, list) else [value]
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
