"""The Llama family, in Hugging Face's layout, in Meta's, and in a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from llmconv import CheckpointError
from llmconv.sources import ModelConfig, Source
from llmconv.tokenizer import Tokenizer
from llmconv.weights import Derived, WeightStore
from llmconv_plugins.sources.llama_gguf import SUFFIX, GGUFLlama
from llmconv_plugins.sources.llama_huggingface import ADAPTER, HuggingFaceLlama
from llmconv_plugins.sources.llama_layout import Description, LlamaLayout
from llmconv_plugins.sources.llama_meta import MetaLlama
from llmconv_plugins.sources.llama_module import Llama


@dataclass(frozen=True)
class LlamaSource(Source):
    """Llama checkpoints: a folder with config.json (Hugging Face's), with params.json (Meta's), or a GGUF file."""

    name: ClassVar[str] = "llama"

    @classmethod
    def reads(cls, checkpoint: Path) -> bool:
        """Whether something of one of the layouts lies there."""
        return _layout(checkpoint) is not None

    @cached_property
    def _layout(self) -> LlamaLayout:
        if not self.checkpoint.exists():
            raise CheckpointError(
                f"{self.checkpoint}: no such file or folder; set model.checkpoint or pass --checkpoint"
            )
        if self.checkpoint.is_file() and self.checkpoint.suffix.lower() != SUFFIX:
            raise CheckpointError(f"{self.checkpoint}: no folder and no {SUFFIX} file; give the checkpoint's folder")
        return (_layout(self.checkpoint) or HuggingFaceLlama)(self.checkpoint)  # which says what is missing

    @cached_property
    def _description(self) -> Description:
        return self._layout.describe()

    def config(self) -> ModelConfig:
        """The model's sizes."""
        found, sizes = self._description, self._description.sizes
        return ModelConfig(
            family="llama",
            layers=sizes.layers,
            hidden=sizes.hidden,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            vocabulary=sizes.vocabulary,
            positions=found.positions,
            bos=found.bos,
            eos=found.eos,
            rope_theta=sizes.rope_theta,
            sampling=found.sampling,
        )

    def module(self) -> nn.Module:
        """The module, without data."""
        with torch.device("meta"):
            return Llama(self._description.sizes)

    def weights(self) -> WeightStore:
        """The checkpoint's tensors by the module's names, in the module's shapes."""
        shapes = {name: list(parameter.shape) for name, parameter in self.module().named_parameters()}
        store = Derived(self._layout.open(), {name: self._layout.weight(name) for name in shapes})
        for name, asked in shapes.items():
            if (found := list(store.shape(name))) != asked:
                raise CheckpointError(
                    f"{self.checkpoint}: tensor '{store.table[name]}' has shape {found}, "
                    f"{self._layout.file.name} asks for {asked}"
                )
        return store

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self._layout.tokenizer()

    def description(self) -> Mapping[str, bytes]:
        """The file that names the sizes, the tokenizer, and what else says how to talk with the model."""
        return self._layout.files()

    def reference(self) -> nn.Module | str:
        """The same checkpoint in transformers, which reads Hugging Face's layout and GGUF."""
        return self._layout.reference()


def _layout(checkpoint: Path) -> type[LlamaLayout] | None:
    if checkpoint.is_file():
        return GGUFLlama if checkpoint.suffix.lower() == SUFFIX else None
    if any((checkpoint / name).is_file() for name in (HuggingFaceLlama.config_name, ADAPTER)):
        return HuggingFaceLlama
    if (checkpoint / MetaLlama.config_name).is_file() or any(checkpoint.glob("consolidated.*.pth")):
        return MetaLlama
    return GGUFLlama if any(checkpoint.glob(f"*{SUFFIX}")) else None
