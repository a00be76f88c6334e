"""What a source plugin gives: a module on the meta device, its configuration, its tokenizer and its weights."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import nn

from llmconv.plugins.frame import Framed
from llmconv.sources.family import Family
from llmconv.sources.model_config import ModelConfig
from llmconv.tokenizer.tokenizer import Tokenizer
from llmconv.weights.low_rank import LowRankChanges
from llmconv.weights.store import WeightStore


@dataclass(frozen=True)
class Source(Framed, ABC):
    """Reads one family of checkpoints. A subclass is a frozen dataclass; its fields are `[model.options]`.

    Attributes:
        checkpoint: the checkpoint's folder, or its file.
        families: by model type, those that plugins registered; no option of a recipe.
    """

    name: ClassVar[str]

    checkpoint: Path
    families: Mapping[str, type[Family]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def know(self, families: Mapping[str, type[Family]]) -> None:
        """Take the families that plugins registered, in place of the source's own, before anything is read."""
        object.__setattr__(self, "families", families)

    def uses(self) -> Sequence[object]:
        """What of other plugins the source reads the checkpoint by, such as a family."""
        return ()

    @classmethod
    def reads(cls, checkpoint: Path) -> bool:
        """Whether this source is for what lies there, where a recipe names none; by default never."""
        return False

    @classmethod
    def wanted(cls, names: Sequence[str], *, weights: bool) -> Sequence[str]:
        """Of the names of a repository's files, those that this source reads; none where no checkpoint is among them.

        Args:
            weights: whether the weights are wanted as well, or only what tells the sizes and how to talk.
        """
        return ()

    @abstractmethod
    def config(self) -> ModelConfig:
        """The model's sizes, from the folder's configuration alone.

        Raises:
            CheckpointError: the folder lacks its configuration, or asks for something not implemented.
        """

    @abstractmethod
    def module(self) -> nn.Module:
        """A stateless module on the meta device: `forward(input_ids, position_ids) -> logits`, each (1, tokens[, V]).

        Attention is causal `scaled_dot_product_attention` on (B, H, T, D); one submodule named `rotary` maps
        position_ids to (cos, sin), each (1, 1, tokens, half of the channels of a head that are turned); where some
        layers have a table of their own, a second one is named `rotary_local`. A plan lays out few layers of one that
        is `Repeating`, where the passes allow it.
        """

    @abstractmethod
    def weights(self) -> WeightStore:
        """The weights, by the names of the module's parameters; every one is checked to be there, in its shape."""

    def low_rank_changes(self) -> Mapping[str, LowRankChanges]:
        """What each adapter that runtimes are to switch between changes of the checkpoint's tensors; by default none.

        Raises:
            CheckpointError: an adapter is damaged, of another model, or changes more than that.
        """
        return {}

    def with_adapter(self, name: str) -> WeightStore:
        """The weights with one of these adapters merged, by which a proof knows what switching to it must give."""
        raise NotImplementedError(f"{type(self).__name__} has no adapters to switch between")

    def stored(self) -> Mapping[str, int]:
        """How many tensors of the checkpoint are stored as what, e.g. "BF16"; nothing where the source cannot tell."""
        return {}

    def row_bits(self) -> int | None:
        """Bits of the weights that lie in the checkpoint as integers with one scale a row, as its configuration tells.

        By default None: there are none, or grids may not hold them.
        """
        return None

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""

    @abstractmethod
    def description(self) -> Mapping[str, bytes]:
        """Name -> content of the files, weights apart, from which a source makes `config`, `module` and `tokenizer`.

        A bundle keeps them in a folder, so that it can be run and proved when the checkpoint is gone. They are the
        checkpoint's own, or, where it is one file, made of it.
        """

    @abstractmethod
    def reference(self) -> nn.Module | str:
        """An independent implementation to compare with (input_ids -> logits), or one line on why there is none."""


def digests(source: Source) -> dict[str, str]:
    """Name -> sha256 of the files of a source's description."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in source.description().items()}
