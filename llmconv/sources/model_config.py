"""The sizes of a model."""

from __future__ import annotations

from dataclasses import dataclass

from llmconv.sources.rope import Rope
from llmconv.sources.sampling import Sampling


@dataclass(frozen=True)
class ModelConfig:
    """The sizes that hosts and reports need, whatever the model's family.

    Attributes:
        window: how many positions the narrowest layer sees; None where each sees all.
        bos: the id that begins texts, where the model has one; whether they do begin so is the tokenizer's to say.
        eos: ids that end a text.
        ropes: the tables of cos and sin that queries and keys are turned by.
        sampling: how the checkpoint says that tokens are to be chosen.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    window: int | None
    bos: int | None
    eos: tuple[int, ...]
    ropes: tuple[Rope, ...]
    sampling: Sampling = Sampling()  # noqa: RUF009  frozen
