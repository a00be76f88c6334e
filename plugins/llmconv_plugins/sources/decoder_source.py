"""Decoders of all families, in Hugging Face's layout, in Meta's, and in a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from llmconv import CheckpointError
from llmconv.sources import Family, ModelConfig, Source
from llmconv.tokenizer import Tokenizer
from llmconv.weights import Derived, GGUFStore, LowRankChanges, SafetensorsStore, WeightStore
from llmconv_plugins.sources.adapter import CONFIG as ADAPTER_CONFIG
from llmconv_plugins.sources.adapter import apart
from llmconv_plugins.sources.decoder import DecoderModule
from llmconv_plugins.sources.families import FAMILIES
from llmconv_plugins.sources.gguf import GGUF, SUFFIX
from llmconv_plugins.sources.huggingface import HuggingFace
from llmconv_plugins.sources.layout import Description, Layout
from llmconv_plugins.sources.meta import Meta


def _built_in() -> dict[str, type[Family]]:
    return {kind: family for family in FAMILIES for kind in family.types}


@dataclass(frozen=True)
class DecoderSource(Source):
    """Decoder-only models: a folder with config.json (Hugging Face's), with params.json (Meta's), or a GGUF file.

    Attributes:
        adapters: PEFT folders, a recipe's `model.adapter`, that are merged into the weights -> the weight of each.
        switchable: PEFT folders by name, a recipe's `model.switchable`, that stay apart from the weights.
    """

    name: ClassVar[str] = "decoder"

    adapters: dict[Path, float] = field(default_factory=dict)
    switchable: dict[str, Path] = field(default_factory=dict)
    families: Mapping[str, type[Family]] = field(default_factory=_built_in, init=False, repr=False, compare=False)

    @classmethod
    def reads(cls, checkpoint: Path) -> bool:
        """Whether something of one of the layouts lies there."""
        return _layout(checkpoint) is not None

    @classmethod
    def wanted(cls, names: Sequence[str], *, weights: bool) -> Sequence[str]:
        """Of Hugging Face's layout, else of Meta's, else of the one GGUF file."""
        for layout in (HuggingFace, Meta, GGUF):
            if found := layout.wanted(names, weights=weights):
                return found
        return ()

    @cached_property
    def _layout(self) -> Layout:
        if not self.checkpoint.exists():
            raise CheckpointError(
                f"{self.checkpoint}: no such file or folder; set model.checkpoint or pass --checkpoint"
            )
        if self.checkpoint.is_file() and self.checkpoint.suffix.lower() != SUFFIX:
            raise CheckpointError(f"{self.checkpoint}: no folder and no {SUFFIX} file; give the checkpoint's folder")
        layout = _layout(self.checkpoint) or HuggingFace  # which says what is missing
        if (self.adapters or self.switchable) and layout is not HuggingFace:
            raise CheckpointError(
                f"{self.checkpoint}: adapters are merged into checkpoints in Hugging Face's layout alone; "
                "give the folder that the adapter was trained on"
            )
        return layout(self.checkpoint, self.families, self.adapters)

    @cached_property
    def _description(self) -> Description:
        return self._layout.describe()

    def config(self) -> ModelConfig:
        """The model's sizes."""
        found, architecture = self._description, self._description.architecture
        return ModelConfig(
            family=found.family.types[0],
            layers=architecture.layers,
            hidden=architecture.hidden,
            heads=architecture.heads,
            kv_heads=architecture.kv_heads,
            head_dim=architecture.head_dim,
            vocabulary=architecture.vocabulary,
            positions=architecture.positions,
            window=architecture.window,
            bos=found.bos,
            eos=found.eos,
            ropes=architecture.ropes,
            sampling=found.sampling,
        )

    def uses(self) -> tuple[object, ...]:
        """The family."""
        return (self._description.family,)

    def module(self) -> nn.Module:
        """The module, without data."""
        architecture = self._description.architecture
        with torch.device("meta"):
            return DecoderModule(architecture)

    def weights(self) -> WeightStore:
        """The checkpoint's tensors by the module's names, in the module's shapes."""
        shapes = {name: list(parameter.shape) for name, parameter in self.module().named_parameters()}
        opened = self._layout.open()
        store = Derived(opened, {name: self._layout.weight(name, opened) for name in shapes})
        for name, asked in shapes.items():
            if (found := list(store.shape(name))) != asked:
                raise CheckpointError(
                    f"{self.checkpoint}: tensor '{store.table[name]}' has shape {found}, "
                    f"{self._layout.file.name} asks for {asked}"
                )
        return store

    def low_rank_changes(self) -> Mapping[str, LowRankChanges]:
        """By the names that the checkpoint's tensors have."""
        opened = self._layout.open() if self.switchable else None
        return {} if opened is None else {name: apart(at, opened) for name, at in self.switchable.items()}

    def with_adapter(self, name: str) -> WeightStore:
        """As if it were among `adapters`."""
        merged = DecoderSource(self.checkpoint, {**self.adapters, self.switchable[name]: 1.0})
        merged.know(self.families)
        return merged.weights()

    def stored(self) -> Mapping[str, int]:
        """As the headers of safetensors and GGUF files have it."""
        opened = self._layout.open()
        return opened.types if isinstance(opened, SafetensorsStore | GGUFStore) else {}

    def row_bits(self) -> int | None:
        """As `quantization_config` has it."""
        return self._layout.row_bits()

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self._layout.tokenizer()

    def description(self) -> Mapping[str, bytes]:
        """The file that names the sizes, the tokenizer, and what else says how to talk with the model."""
        return self._layout.files()

    def reference(self) -> nn.Module | str:
        """The same checkpoint in transformers, which reads Hugging Face's layout and GGUF."""
        return self._layout.reference()


def _layout(checkpoint: Path) -> type[Layout] | None:
    if checkpoint.is_file():
        return GGUF if checkpoint.suffix.lower() == SUFFIX else None
    if any((checkpoint / name).is_file() for name in (HuggingFace.config_name, ADAPTER_CONFIG)):
        return HuggingFace
    if (checkpoint / Meta.config_name).is_file() or any(checkpoint.glob("consolidated.*.pth")):
        return Meta
    if any(checkpoint.glob(f"*{SUFFIX}")):
        return GGUF
    return HuggingFace if any((checkpoint / name).is_file() for name in HuggingFace.weight_files()) else None
