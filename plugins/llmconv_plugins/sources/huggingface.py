"""Hugging Face's layout: config.json with safetensors or pytorch_model*.bin, single or sharded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from functools import cached_property
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from llmconv import CheckpointError, Sampling
from llmconv.files import check_no_pointer, stays_inside
from llmconv.sources import Family, Keys
from llmconv.weights import Checkpoint, DerivedCheckpoint, Expression, PickleStore, SafetensorsStore
from llmconv_plugins.sources.adapter import CONFIG as ADAPTER
from llmconv_plugins.sources.adapter import adapted, base_of, beside
from llmconv_plugins.sources.formats import KEYS as QUANTIZATION
from llmconv_plugins.sources.formats import format_of, row_bits_of
from llmconv_plugins.sources.layout import TALK, TOKENIZERS, Description, Layout
from llmconv_plugins.sources.outside import OUTSIDE

KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))  # stem and suffix of files that hold weights
GENERATION = "generation_config.json"
_SHARD = re.compile(r".+-\d{5}-of-(\d{5})\.\w+")
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

    @classmethod
    def weight_files(cls) -> Iterator[str]:
        """Names of files that hold weights, or list those that do; by which a folder without config.json is known."""
        for stem, suffix in KINDS:
            yield from (f"{stem}.{suffix}", f"{stem}.{suffix}.index.json")

    def table(self, name: str) -> Keys:
        """A file of the checkpoint.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        adapter = self.folder / ADAPTER
        if name == self.config_name and not self.file.is_file() and adapter.is_file():
            raise CheckpointError(
                f"{self.folder}: an adapter alone, of {base_of(self.folder)}; give that model's folder as the "
                f"checkpoint, and this one as --adapter {self.folder}"
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
        format_of(config)  # refuses by name what is not read
        if not isinstance(kind, str) or kind not in self.families:
            why = OUTSIDE.get(str(kind), "no family knows it")
            raise CheckpointError(
                f"{self.file}: model_type = {kind!r} is not implemented: {why}; 'llmconv families' lists what is"
            )
        family = self.families[kind]
        values = {key: value for key, value in config.values.items() if key not in QUANTIZATION}
        if family.text and (inner := config.table(family.text).values):  # which may be of another family
            family = self.families.get(str(inner.get("model_type")), family)
            values = {**inner, "tie_word_embeddings": config.get("tie_word_embeddings", True)}
        return family(Keys(config.path, values))

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
        penalty = asked.optional("repetition_penalty") or 1.0
        if not asked.values.get("do_sample"):
            return Sampling(repetition_penalty=penalty)
        found = {key: asked.values.get(key) for key in ("temperature", "top_k", "top_p")}
        temperature = 1.0 if found["temperature"] is None else asked.number("temperature", 1.0)
        top_k = 50 if found["top_k"] is None else asked.integer("top_k", 50, least=0)
        top_p = 1.0 if found["top_p"] is None else asked.number("top_p", 1.0)
        return Sampling(temperature, top_k, top_p, repetition_penalty=penalty)

    def describe(self) -> Description:
        """As the family has it."""
        family = self.family
        return Description(family, family.described, self._bos(), self._eos(), self._sampling())

    def open(self) -> Checkpoint:
        """The safetensors files, or the pickle files of a folder without safetensors; with adapters merged."""
        if line := beside(self.folder, self.adapters):
            logger.warning("%s", line)
        opened: Checkpoint = self._opened
        if (quantized := format_of(self._json)) is not None:
            table, said = quantized
            opened = DerivedCheckpoint(opened, table(said, opened, self._opened.names))
        return adapted(opened, self.adapters) if self.adapters else opened

    @cached_property
    def _opened(self) -> SafetensorsStore | PickleStore:
        if files := self._files("model", "safetensors"):
            return SafetensorsStore(files)
        if files := self._files("pytorch_model", "bin"):
            return PickleStore(files)
        return SafetensorsStore([self.folder / "model.safetensors"])  # which says that it is missing

    def row_bits(self) -> int | None:
        """As `quantization_config` says."""
        return row_bits_of(self._json)

    def weight(self, name: str, store: Checkpoint) -> Expression:
        """As the family has it."""
        return self.family.weight(name, store)

    def _files(self, stem: str, suffix: str) -> list[Path]:
        """The files of one kind: what the index names, else the single file, else the shards that lie there.

        An index whose files are not there, beside the single file, is left over from another form of the model.
        """
        index, single = self.folder / f"{stem}.{suffix}.index.json", self.folder / f"{stem}.{suffix}"
        if index.is_file():
            check_no_pointer(index)
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                outside = [shard for shard in shards if not stays_inside(shard)]
                files = [self.folder / shard for shard in shards]
            except (ValueError, LookupError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{index}: damaged; download it again") from error
            if outside:
                raise CheckpointError(f"{index}: names '{outside[0]}', which is no file of this folder")
            if single.is_file() and not any(file.is_file() for file in files):
                logger.warning("%s: names files that are not there; %s is read instead", index, single.name)
                return [single]
            return files
        return [single] if single.is_file() else self._shards(stem, suffix)

    def _shards(self, stem: str, suffix: str) -> list[Path]:
        """All shards of the one set that lies in the folder; one that is not there is asked for as well.

        Raises:
            CheckpointError: there are shards of several sets.
        """
        names = (_SHARD.fullmatch(file.name) for file in self.folder.glob(f"{stem}-*-of-*.{suffix}"))
        counts = {found[1] for found in names if found is not None}
        if len(counts) > 1:
            raise CheckpointError(
                f"{self.folder}: holds shards of sets of {' and of '.join(sorted(counts))}, and no index says which "
                "are the model's; remove the others"
            )
        return [
            self.folder / f"{stem}-{i:05}-of-{count}.{suffix}" for count in counts for i in range(1, int(count) + 1)
        ]

    def reference(self) -> nn.Module | str:
        """The same checkpoint in transformers, float32, if it knows the model type; with adapters as peft has them."""
        if format_of(self._json) is not None:
            return "transformers reads quantized checkpoints through libraries of their own"
        return in_transformers(self.folder, self.adapters)


def in_transformers(folder: Path, adapters: Mapping[Path, float] = MappingProxyType({}), **how: Any) -> nn.Module | str:
    """A checkpoint as transformers reads it, with adapters as peft merges them: ids to logits, float32; or why not."""
    try:
        from transformers import CONFIG_MAPPING  # noqa: PLC0415  an extra, and 2 s to import
        from transformers.models.auto import modeling_auto as auto  # noqa: PLC0415  likewise
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415  likewise
    except ImportError:
        return "pip install llmconv[verify]"
    kind = None if how else Keys.read(folder / HuggingFace.config_name).get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        return f"transformers does not know model type '{kind}'"
    disable_progress_bar()  # type: ignore[no-untyped-call]  # llmconv has its own
    with redirect_stderr(StringIO()) if how else nullcontext():  # its reader of GGUF has a progress bar of its own
        images = kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        model = (auto.AutoModelForImageTextToText if images else auto.AutoModelForCausalLM).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager", **how
        )
    for adapter, weight in adapters.items():
        try:
            from peft import PeftModel  # noqa: PLC0415  an extra, as above
            from peft.tuners.lora import LoraLayer  # noqa: PLC0415  likewise
        except ImportError:
            return "the adapter's own library is not installed; pip install peft"
        model = PeftModel.from_pretrained(model, adapter)
        for layer in (m for m in model.modules() if isinstance(m, LoraLayer)):
            layer.scale_layer(weight)
        model = model.merge_and_unload()
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
