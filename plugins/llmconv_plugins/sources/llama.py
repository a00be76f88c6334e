"""The Llama family, in Hugging Face's layout and in Meta's."""

from __future__ import annotations

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
from llmconv_plugins.sources.llama_huggingface import GENERATION, HuggingFaceLlama
from llmconv_plugins.sources.llama_layout import Description, LlamaLayout
from llmconv_plugins.sources.llama_meta import MetaLlama
from llmconv_plugins.sources.llama_module import Llama

TALK = ("tokenizer_config.json", "chat_template.jinja", GENERATION)  # Hugging Face's names; none has to be there


@dataclass(frozen=True)
class LlamaSource(Source):
    """Llama checkpoints; config.json makes a folder Hugging Face's, else params.json makes it Meta's."""

    name: ClassVar[str] = "llama"

    @cached_property
    def _layout(self) -> LlamaLayout:
        folder = self.checkpoint
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; set model.checkpoint or pass --checkpoint")
        if (folder / HuggingFaceLlama.config_name).is_file():
            return HuggingFaceLlama(folder)
        meta = (folder / MetaLlama.config_name).is_file() or any(folder.glob("consolidated.*.pth"))
        return MetaLlama(folder) if meta else HuggingFaceLlama(folder)

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
        """The tokenizer in the checkpoint's folder."""
        return Tokenizer.find(self.checkpoint)

    def description(self) -> list[Path]:
        """The file that names the sizes, the tokenizer, and what else says how to talk with the model."""
        talk = [self.checkpoint / name for name in TALK]
        return [self._layout.file, self.tokenizer().file, *(file for file in talk if file.is_file())]

    def reference(self) -> nn.Module | str:
        """The same checkpoint in transformers, which reads Hugging Face's layout alone."""
        return self._layout.reference()
