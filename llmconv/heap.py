"""The memory of this process: large pieces of it, and what was freed and the C library keeps."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["empty", "trim"]

if TYPE_CHECKING:  # who runs a small command does not wait for it
    import torch


def trim() -> None:
    """Return what is free, also between what is held, to the system, where glibc runs; it takes milliseconds."""
    found = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if found is not None:
        found(0)


def empty(shape: Sequence[int], dtype: DTypeLike = np.float32) -> torch.Tensor:
    """Numbers, whichever lie there; many of them in huge pages, which numpy asks for and torch does not.

    The kernel takes six times as long to hand out 50 MB in small pages as a core to fill them.
    """
    import torch  # noqa: PLC0415  as above

    return torch.from_numpy(np.empty(tuple(shape), dtype))
