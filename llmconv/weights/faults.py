"""What a checkpoint's files are told by: numbers that are none, tensors that lie in two files."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from pathlib import Path

import torch

from llmconv.errors import CheckpointError


def check_finite(values: torch.Tensor, file: Path, name: str) -> None:
    """Whether numbers that were just read are numbers; a sum tells, at next to no cost.

    Raises:
        CheckpointError: names the tensor.
    """
    if not isfinite(float(values.sum())) and not bool(values.isfinite().all()):
        raise CheckpointError(f"{file}: tensor '{name}' holds NaN or infinity; download it again, or use another copy")


def check_apart(known: Iterable[str], file: Path, found: Iterable[str]) -> None:
    """Whether the tensors of a further file are others than those of the files before.

    Raises:
        CheckpointError: one lies in two files.
    """
    if twice := sorted(set(known) & set(found)):
        raise CheckpointError(
            f"{file}: tensor '{twice[0]}' lies in another file of the checkpoint as well; are they of one model? "
            "remove the files that do not belong to it"
        )
