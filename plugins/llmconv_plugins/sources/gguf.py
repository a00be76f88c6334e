"""A decoder in a GGUF file, as llama.cpp's converter writes it: read as the Hugging Face folder that it tells of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import isclose
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from llmconv import CheckpointError
from llmconv.sources import Family, Keys
from llmconv.tokenizer import Tokenizer
from llmconv.weights import Checkpoint, GGUFStore, set_of, shard_number
from llmconv_plugins.sources.decoder import DecoderModule
from llmconv_plugins.sources.gguf_config import PAIRED, ROPE_FACTORS, GGUFConfig
from llmconv_plugins.sources.huggingface import GENERATION, HuggingFace, in_transformers

SUFFIX = ".gguf"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_EOS, _ROLES = ("eos_token_id", "eot_token_id", "eom_token_id"), ("bos", "eos", "unknown", "padding")
_QKV = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}


class GGUF(HuggingFace):
    """A `.gguf` file, the first of a split set, or a folder with one of them.

    Keys of the architecture that are not known here are errors that name them: they may change what is computed.
    """

    def __init__(
        self,
        checkpoint: Path,
        families: Mapping[str, type[Family]],
        adapters: Mapping[Path, float] = MappingProxyType({}),
    ) -> None:
        super().__init__(checkpoint, families, adapters)
        self.file = checkpoint if checkpoint.is_file() else _only(checkpoint)
        self.folder = self.file.parent

    @classmethod
    def wanted(cls, names: Sequence[str], *, weights: bool) -> Sequence[str]:
        """The one file, or the one split set; it holds all that there is to know.

        Raises:
            CheckpointError: there are several.
        """
        found = [name for name in names if name.lower().endswith(SUFFIX)]
        first = [name for name in found if shard_number(Path(name)) == 1]
        if len(first) > 1:
            raise CheckpointError(f"{len(first)} GGUF checkpoints; name one, ORG/NAME/FILE: {', '.join(first)}")
        return found

    @cached_property
    def _store(self) -> GGUFStore:
        return GGUFStore(set_of(self.file))

    @cached_property
    def _told(self) -> GGUFConfig:
        return GGUFConfig(self._store, self.families)

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
        config = {**self._told.values, "bos_token_id": named["bos"], "eos_token_id": named["eos"]}
        return {self.config_name: config, TOKENIZER_CONFIG: talk, GENERATION: {"eos_token_id": ends or None}}

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

    @cached_property
    def family(self) -> Family:
        """That of the architecture, with tensors as the file has them."""
        config = self._json
        return _in_file(self._told, self.families[self._told.model_type])(config)

    def open(self) -> Checkpoint:
        """The file's tensors.

        Raises:
            CheckpointError: it has one that the module lacks.
        """
        store = self._store
        with torch.device("meta"):
            parameters = [name for name, _ in DecoderModule(self.describe().architecture).named_parameters()]
        known = {tensor for name in parameters for tensor in self.weight(name, store).stored()} | ROPE_FACTORS
        if beyond := [name for name in store.names if name not in known]:
            raise CheckpointError(f"{self.file}: tensor '{beyond[0]}' is not implemented")
        return store

    def reference(self) -> nn.Module | str:
        """The same file in transformers, where its reader of GGUF leaves out nothing that the file says."""
        if len(self._store.files) > 1:
            return "transformers does not read a GGUF file that is split"
        told = self._told.values
        if "rope_scaling" in told:
            return "transformers does not read from a GGUF file what scales RoPE"
        try:
            model = in_transformers(self.folder, gguf_file=self.file.name)
        except (ValueError, RuntimeError) as error:  # of an architecture, or of shapes, that it does not read
            return f"transformers does not read this GGUF file: {str(error).splitlines()[0]}"
        if isinstance(model, str):
            return model
        read = model.model.config  # type: ignore[union-attr]  # of its class
        other = [key for key, value in told.items() if not _same(getattr(read, key, value), value)]
        return f"transformers reads another {other[0]} from this GGUF file" if other else model


def _same(read: Any, told: Any) -> bool:
    """Whether they are equal, but for what single precision loses."""
    return isclose(read, told, rel_tol=1e-6) if isinstance(read, float) and told else bool(read == told)


def _in_file(told: GGUFConfig, family: type[Family]) -> type[Family]:
    """A family whose tensors have llama.cpp's names and order of rows, and whose norms have their 1 added."""
    import gguf  # noqa: PLC0415  0.1 s that those without such a file should not pay

    found = [key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == told.architecture]
    if not found:
        raise CheckpointError(f"architecture {told.architecture!r} is newer than the gguf library; pip install -U gguf")
    names = gguf.get_tensor_name_map(found[0], told.own["block_count"])

    class InFile(family):  # type: ignore[misc, valid-type]
        norm_shift = 0.0
        paired = family.paired or told.architecture in PAIRED
        fused: ClassVar = {**family.fused, **(_QKV if "blk.0.attn_qkv.weight" in told.store else {})}

        def stored(self, name: str, store: Checkpoint) -> str:
            """The converter's name of what it finds under Hugging Face's."""
            found: str = super().stored(name, store)
            return names.get_name(found, try_suffixes=(".weight", ".bias")) or found

    InFile.__module__ = family.__module__  # by which a recipe's work knows the code that it depends on
    return InFile


def _only(folder: Path) -> Path:
    """The one checkpoint of a folder."""
    found = [file for file in sorted(folder.glob(f"*{SUFFIX}")) if shard_number(file) == 1]
    if len(found) != 1:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{folder}: holds {len(found)} GGUF checkpoints ({names}); give the path of one file")
    return found[0]
