"""Meta's tensors as Hugging Face orders them: ranks joined, rows of queries and keys moved for RoPE's halves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llmconv import CheckpointError
from llmconv.weights import PickleStore

# The axis on which each tensor is split over the ranks; the others are the same in every file.
_SPLIT = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1, "tok_embeddings": 1}
_ROTATED = ("wq", "wk")


class MetaStore:
    """The tensors of consolidated.*.pth.

    RoPE turns neighbours 2i and 2i + 1 of a head in Meta's order, i and D / 2 + i in Hugging Face's; so row j of a head
    of D rows lies in row 2j of the file for j < D / 2, in row 2(j - D / 2) + 1 above.

    Args:
        files: one a rank, in order.
        names: module name -> Meta's name.

    Raises:
        CheckpointError: as of `PickleStore`; or the ranks' tensors do not fit together.
    """

    def __init__(self, files: list[Path], names: Mapping[str, str], head_dim: int) -> None:
        self._ranks = [PickleStore([file], names) for file in files]
        self._files, self._names, self._head_dim = files, names, head_dim

    @property
    def hashes(self) -> Mapping[str, str]:
        """sha256 of each weight that was read whole; of its ranks' where there are several."""
        first, *others = [rank.hashes for rank in self._ranks]
        return {name: " ".join([sha, *(rank[name] for rank in others if name in rank)]) for name, sha in first.items()}

    def _kind(self, name: str) -> str:
        return self._names.get(name, name).split(".")[-2]  # layers.0.attention.wq.weight -> wq

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the joined weight."""
        shapes, axis = [list(rank.shape(name)) for rank in self._ranks], _SPLIT.get(self._kind(name))
        joined = list(shapes[0])
        if axis is not None and axis < len(joined):
            joined[axis] = sum(shape[axis] for shape in shapes if axis < len(shape))
        for file, shape in zip(self._files, shapes, strict=True):
            if len(shape) != len(joined) or any(
                a != b for i, (a, b) in enumerate(zip(shape, joined, strict=True)) if i != axis
            ):
                raise CheckpointError(
                    f"{file}: tensor '{self._names.get(name, name)}' has shape {shape}, which does not fit "
                    f"{shapes[0]} in {self._files[0].name}; are the files of one model?"
                )
        return tuple(joined)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A weight, or a range of its rows, as float32, in Hugging Face's order."""
        if self._kind(name) not in _ROTATED:
            return self._joined(name, rows or slice(None))
        order = torch.arange(self.shape(name)[0]).reshape(-1, self._head_dim // 2, 2)  # (H, D / 2, 2)
        wanted = order.transpose(1, 2).flatten()[rows or slice(None)]
        if not len(wanted):
            return self._joined(name, slice(0, 0))
        first, last = int(wanted.min()), int(wanted.max())
        return self._joined(name, slice(first, last + 1))[wanted - first]

    def _joined(self, name: str, rows: slice) -> Tensor:
        """Rows in the file's order."""
        axis = _SPLIT.get(self._kind(name))
        if axis is None or len(self._ranks) == 1:
            return self._ranks[0].read(name, rows)
        if axis == 1:
            return torch.cat([rank.read(name, rows) for rank in self._ranks], dim=1)
        start, stop, _ = rows.indices(self.shape(name)[0])
        parts: list[Tensor] = []
        begin = 0
        for rank in self._ranks:
            count = rank.shape(name)[0]
            low, high = max(start - begin, 0), min(stop - begin, count)
            if low < high or not parts:  # an empty part where the range is empty
                parts.append(rank.read(name, slice(low, max(low, high))))
            begin += count
        return torch.cat(parts)
