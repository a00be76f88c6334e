"""What the layouts of checkpoints have in common: each gives architecture, tokenizer and weights of one checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from torch import nn

from llmconv import Sampling
from llmconv.sources import Architecture, Family
from llmconv.tokenizer import Tokenizer
from llmconv.weights import Checkpoint, Expression

TOKENIZERS = ("tokenizer.json", "tokenizer.model")
# Hugging Face's names of files that say how to talk with a model; none has to be there
TALK = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
)


@dataclass(frozen=True)
class Description:
    """What a layout's small files say of the model."""

    family: Family
    architecture: Architecture
    bos: int | None
    eos: tuple[int, ...]
    sampling: Sampling


class Layout(ABC):
    """One way in which a checkpoint holds a decoder.

    Args:
        folder: the checkpoint's.
        families: by model type.
        adapters: folders of adapters that are merged into the weights -> the weight of each.
    """

    config_name: ClassVar[str]  # of the file that names the sizes

    def __init__(
        self, folder: Path, families: Mapping[str, type[Family]], adapters: Mapping[Path, float] = MappingProxyType({})
    ) -> None:
        self.folder = folder
        self.families = families
        self.adapters = adapters
        self.file = folder / self.config_name

    @classmethod
    @abstractmethod
    def wanted(cls, names: Sequence[str], *, weights: bool) -> Sequence[str]:
        """As of `Source.wanted`."""

    @abstractmethod
    def describe(self) -> Description:
        """What is computed, from the small files alone."""

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
    def open(self) -> Checkpoint:
        """The checkpoint's tensors, by their names there."""

    def row_bits(self) -> int | None:
        """As of `Source.row_bits`."""
        return None

    @abstractmethod
    def weight(self, name: str, store: Checkpoint) -> Expression:
        """What a parameter of the module is, of these tensors."""

    @abstractmethod
    def reference(self) -> nn.Module | str:
        """As of `Source.reference`."""
