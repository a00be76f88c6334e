"""What the layouts of Llama checkpoints have in common: each gives sizes, tokenizer and weights of one checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import nn

from llmconv import CheckpointError, Sampling
from llmconv.tokenizer import Tokenizer
from llmconv.weights import Expression, WeightStore
from llmconv_plugins.sources.json_file import JsonFile
from llmconv_plugins.sources.llama_module import LlamaSizes

# Hugging Face's names of files that say how to talk with a model; none has to be there
TALK = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
)


@dataclass(frozen=True)
class Description:
    """What a layout's small files say of the model."""

    sizes: LlamaSizes
    positions: int
    bos: int | None
    eos: tuple[int, ...]
    sampling: Sampling


class LlamaLayout(ABC):
    """One way in which a checkpoint holds a Llama.

    Args:
        folder: the checkpoint's.
    """

    config_name: ClassVar[str]  # of the file that names the sizes

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / self.config_name

    @abstractmethod
    def describe(self) -> Description:
        """The model's sizes, from the small files alone."""

    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the folder."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.find(self.folder)

    def files(self) -> Mapping[str, bytes]:
        """As of `Source.description`: the file that names the sizes, the tokenizer, and what there is of `TALK`."""
        talk = [self.folder / name for name in TALK]
        files = [self.file, self.tokenizer().file, *(file for file in talk if file.is_file())]
        return {file.name: file.read_bytes() for file in files}

    @abstractmethod
    def open(self) -> WeightStore:
        """The checkpoint's tensors, by their names there."""

    @abstractmethod
    def weight(self, name: str) -> Expression:
        """What a parameter of the module is, of these tensors."""

    @abstractmethod
    def reference(self) -> nn.Module | str:
        """As of `Source.reference`."""


def check_heads(file: JsonFile, heads: tuple[str, int], kv_heads: tuple[str, int], head_dim: int) -> None:
    """Refuse numbers of heads that do not share keys evenly, and heads that RoPE cannot halve.

    Args:
        heads: key of the file and its value, as is kv_heads.
    """
    if heads[1] % kv_heads[1]:
        raise CheckpointError(f"{file.path}: {heads[0]} = {heads[1]} is no multiple of {kv_heads[0]} = {kv_heads[1]}")
    if head_dim % 2:
        raise CheckpointError(f"{file.path}: head_dim = {head_dim} is odd; RoPE rotates halves")
