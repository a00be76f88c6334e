"""Hugging Face's layout: config.json with safetensors or pytorch_model*.bin, single or sharded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmconv import CheckpointError, Sampling
from llmconv.sources import Family, Keys
from llmconv.weights import Checkpoint, Expression, PickleStore, SafetensorsStore
from llmconv_plugins.sources.layout import TALK, TOKENIZERS, Description, Layout
from llmconv_plugins.sources.outside import OUTSIDE

KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))  # stem and suffix of files that hold weights
GENERATION, ADAPTER = "generation_config.json", "adapter_config.json"
logger = logging.getLogger(__name__)


class HuggingFace(Layout):
    """Keys of config.json that its family does not know are errors that name them, unless they say nothing."""

    config_name = "config.json"

    @classmethod
    def wanted(cls, names: Sequence[str], *, weights: bool) -> Sequence[str]:
        """config.json, what says how to talk, and the first kind of weights: whole, else in shards with their index."""
        if cls.config_name not in names and ADAPTER not in names:
            return ()
        found = [name for name in (cls.config_name, ADAPTER, *TOKENIZERS, *TALK) if name in names]
        for stem, suffix in KINDS if weights else ():
            shards = re.compile(rf"{stem}(-\d+-of-\d+\.{suffix}|\.{suffix}\.index\.json)")
            whole = [name for name in names if name == f"{stem}.{suffix}"]
            if files := whole or [name for name in names if shards.fullmatch(name)]:
                return [*found, *files]
        return found

    def table(self, name: str) -> Keys:
        """A file of the checkpoint.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        adapter = self.folder / ADAPTER
        if name == self.config_name and not self.file.is_file() and adapter.is_file():
            base = Keys.read(adapter).values.get("base_model_name_or_path")
            raise CheckpointError(
                f"{self.folder}: an adapter alone, of {base or 'a base model that it does not name'}; "
                "merge it into that model and give the result"
            )
        return Keys.read(self.folder / name)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a file."""
        return (self.folder / name).is_file()

    @cached_property
    def _json(self) -> Keys:
        return self.table(self.config_name)

    @cached_property
    def family(self) -> Family:
        """What config.json's model type stands for.

        Raises:
            CheckpointError: nothing that is known; says why where the type is.
        """
        config = self._json
        kind = config.get("model_type")
        if config.get("quantization_config") is not None:
            raise config.unsupported("quantization_config")
        if not isinstance(kind, str) or kind not in self.families:
            why = OUTSIDE.get(str(kind), "no family knows it")
            raise CheckpointError(
                f"{self.file}: model_type = {kind!r} is not implemented: {why}; 'llmconv families' lists what is"
            )
        family = self.families[kind]
        inner = config.table(family.text) if family.text else config
        return family(inner if inner.values else config)

    @cached_property
    def _generation(self) -> Keys:
        """What generation_config.json says; nothing where there is none."""
        return self.table(GENERATION) if self.has(GENERATION) else Keys(self.folder / GENERATION, {})

    def _eos(self) -> tuple[int, ...]:
        """Every id that ends a text: what generation_config.json says, else config.json; null is none."""
        ids = _end_ids(self._generation)
        for config in (self._json, self.family.keys):
            ids = ids or _end_ids(config)
        return tuple(dict.fromkeys(ids))

    def _bos(self) -> int | None:
        found = [c for c in (self._json, self.family.keys) if c.get("bos_token_id") is not None]
        return found[0].integer("bos_token_id", least=0) if found else None

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
        """As the family has it."""
        family = self.family
        return Description(family, family.described, self._bos(), self._eos(), self._sampling())

    def open(self) -> Checkpoint:
        """The safetensors files, or the pickle files of a folder without safetensors."""
        return self._opened

    @cached_property
    def _opened(self) -> SafetensorsStore | PickleStore:
        if files := self._files("model", "safetensors"):
            return SafetensorsStore(files)
        if files := self._files("pytorch_model", "bin"):
            return PickleStore(files)
        return SafetensorsStore([self.folder / "model.safetensors"])  # which says that it is missing

    def weight(self, name: str, store: Checkpoint) -> Expression:
        """As the family has it."""
        return self.family.weight(name, store)

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
        from transformers import AutoModelForCausalLM  # noqa: PLC0415  an extra, and 2 s to import
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415  likewise
    except ImportError:
        return "pip install llmconv[verify]"
    disable_progress_bar()  # type: ignore[no-untyped-call]  # llmconv has its own
    with redirect_stderr(StringIO()) if how else nullcontext():  # its reader of GGUF has a progress bar of its own
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager", **how
        )
    return _LogitsOnly(model)  # which from_pretrained has set to evaluate


def _end_ids(file: Keys) -> list[int]:
    value = file.get("eos_token_id")
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
