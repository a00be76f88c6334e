"""How a weight is made of the tensors of a store: an expression over them, read a range of rows at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from llmconv.errors import CheckpointError
from llmconv.heap import empty
from llmconv.weights.coded import Coded, coded_of, joined
from llmconv.weights.store import WeightStore

Shape = tuple[int, ...]
_ROWS = 4096  # that are computed at once


class Expression(ABC):
    """One weight, read by rows; a subclass is a frozen dataclass, whose `str` says all that the weight depends on."""

    @abstractmethod
    def shape(self, store: WeightStore) -> Shape:
        """The shape of the weight, without reading it."""

    @abstractmethod
    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """At least one row of the weight, float32; reads what these rows need and, where it can, no more."""

    def coded(self, store: WeightStore) -> Coded | str | None:
        """The weight on the grid that its integers in the store lie on; why it lies on none; None where it has none."""
        had = any(x.coded(store) is not None for x in self._inner())
        return f"{type(self).__name__} takes it off its grid" if had else None

    def stored(self) -> Iterator[str]:
        """The names of the tensors that the weight is made of."""
        for x in self._inner():
            yield from x.stored()

    def _inner(self) -> Iterator[Expression]:
        values = (x for value in self._values() for x in (value if isinstance(value, tuple) else (value,)))
        return (x for x in values if isinstance(x, Expression))

    def _values(self) -> Iterator[object]:
        return (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Such as `Halved(Cut(qkv_proj.weight, 0, 4096), 128)`."""
        shown = (f"({', '.join(map(str, v))})" if isinstance(v, tuple) else str(v) for v in self._values())
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class Stored(Expression):
    """The tensor of that name."""

    name: str

    def shape(self, store: WeightStore) -> Shape:
        """As the store has it."""
        return store.shape(self.name)

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """As the store reads them."""
        return store.read(self.name, slice(start, stop))

    def coded(self, store: WeightStore) -> Coded | str | None:
        """As the store has it."""
        return coded_of(store, self.name)

    def stored(self) -> Iterator[str]:
        """It alone."""
        yield self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Held(Expression):
    """Numbers in memory that no checkpoint has: a rotation, the scales of a smoothing, a norm's ones."""

    values: Tensor

    def shape(self, store: WeightStore) -> Shape:
        """Of the values."""
        return tuple(self.values.shape)

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Of the values."""
        return self.values[start:stop].to(torch.float32)

    @cached_property
    def _text(self) -> str:
        data = self.values.detach().contiguous().flatten().view(torch.uint8).numpy().data
        return f"Held({list(self.values.shape)}, {self.values.dtype}, sha256 {hashlib.sha256(data).hexdigest()})"

    def __str__(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


@dataclass(frozen=True)
class _Over(Expression):
    """Base of those over one weight that leave its shape."""

    x: Expression

    def shape(self, store: WeightStore) -> Shape:
        """Of what is inside."""
        return self.x.shape(store)


@dataclass(frozen=True)
class Cut(_Over):
    """Some of the rows: one projection out of several that a checkpoint keeps as one."""

    start: int
    stop: int

    def shape(self, store: WeightStore) -> Shape:
        """The rows that are left."""
        return self.stop - self.start, *self.x.shape(store)[1:]

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads these alone."""
        return self.x.rows(store, self.start + start, self.start + stop)

    def coded(self, store: WeightStore) -> Coded | str | None:
        """These rows."""
        found = self.x.coded(store)
        return found.picked(torch.arange(self.start, self.stop)) if isinstance(found, Coded) else found


@dataclass(frozen=True)
class Halved(_Over):
    """Rows of each head as RoPE's halves i and R / 2 + i, which the checkpoint has as neighbours 2i and 2i + 1.

    Attributes:
        turned: how many rows R of each head RoPE turns; 0 for all. The rest stay where they are.
    """

    head_dim: int
    turned: int = 0

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads from the first to the last of the rows where they lie: at most a head more at either end."""
        wanted = self._order(store)[start:stop]
        low, high = int(wanted.min()), int(wanted.max()) + 1
        return self.x.rows(store, low, high)[wanted - low]

    def _order(self, store: WeightStore) -> Tensor:
        order, turned = torch.arange(self.shape(store)[0]).reshape(-1, self.head_dim), self.turned or self.head_dim
        halves = order[:, :turned].reshape(-1, turned // 2, 2).transpose(1, 2).reshape(-1, turned)  # (H, R)
        return torch.cat([halves, order[:, turned:]], dim=1).flatten()

    def coded(self, store: WeightStore) -> Coded | str | None:
        """Rows, in this order."""
        found = self.x.coded(store)
        return found.picked(self._order(store)) if isinstance(found, Coded) else found


@dataclass(frozen=True)
class Affine(_Over):
    """x * scale + shift: a norm that multiplies by 1 + w, a factor of the embedding, the residual or the logits."""

    scale: float = 1.0
    shift: float = 0.0

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads these alone."""
        return self.x.rows(store, start, stop) * self.scale + self.shift

    def coded(self, store: WeightStore) -> Coded | str | None:
        """Scaled, where nothing is added."""
        found = self.x.coded(store)
        kept = isinstance(found, Coded) and self.scale > 0 and not self.shift
        return found.scaled(self.scale) if kept and isinstance(found, Coded) else super().coded(store)


@dataclass(frozen=True)
class Columns(_Over):
    """Each column times a number of `by` (columns,), or divided by it: a norm folded into what follows, smoothing."""

    by: Expression
    divide: bool = False

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads these, and all of `by`."""
        x, by = self.x.rows(store, start, stop), _whole(self.by, store)
        return x / by if self.divide else x * by


@dataclass(frozen=True)
class Rows(_Over):
    """Each row times a number of `by` (rows,), or divided by it: the other end of a smoothing."""

    by: Expression
    divide: bool = False

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads these, of both."""
        x = self.x.rows(store, start, stop)
        by = self.by.rows(store, start, stop).reshape(-1, *[1] * (x.ndim - 1))
        return x / by if self.divide else x * by

    def coded(self, store: WeightStore) -> Coded | str | None:
        """Each row's scale with it, where it is above 0."""
        found = self.x.coded(store)
        if isinstance(found, Coded) and bool(((by := _whole(self.by, store)) > 0).all()):
            return found.scaled(1 / by if self.divide else by)
        return super().coded(store)


@dataclass(frozen=True)
class Joined(Expression):
    """Several on top of each other (axis 0) or side by side (axis 1): the ranks of a checkpoint, a fused projection."""

    xs: tuple[Expression, ...]
    axis: int = 0

    def shape(self, store: WeightStore) -> Shape:
        """Of all.

        Raises:
            CheckpointError: the shapes do not fit together.
        """
        shapes = [list(x.shape(store)) for x in self.xs]
        joined = list(shapes[0])
        for x, shape in zip(self.xs[1:], shapes[1:], strict=True):
            if len(shape) != len(joined) or _without(shape, self.axis) != _without(joined, self.axis):
                raise CheckpointError(
                    f"tensor '{x}' has shape {shape}, which does not fit {shapes[0]} of '{self.xs[0]}'; "
                    "are they of one model?"
                )
            joined[self.axis] += shape[self.axis]
        return tuple(joined)

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads from those alone that hold some of the rows."""
        if self.axis:
            return torch.cat([x.rows(store, start, stop) for x in self.xs], dim=self.axis)
        found, begin = [], 0
        for x in self.xs:
            end = begin + x.shape(store)[0]
            if max(start, begin) < min(stop, end):
                found.append(x.rows(store, max(start, begin) - begin, min(stop, end) - begin))
            begin = end
        return found[0] if len(found) == 1 else torch.cat(found)

    def coded(self, store: WeightStore) -> Coded | str | None:
        """On top of each other."""
        return super().coded(store) if self.axis else joined([x.coded(store) for x in self.xs])


@dataclass(frozen=True)
class Rotated(_Over):
    """x @ Q on the side of a linear's inputs, Q^T @ x on that of its outputs.

    Q = I ⊗ q ⊗ I, as large as x or the same in each block, of `stride` in the second I, so that a Kronecker product
    of small factors is several of these.
    """

    q: Expression
    side: Literal["in", "out"] = "in"
    stride: int = 1

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads all of q, and these rows; on the side of the outputs whole blocks of rows, as high as q and stride."""
        q = _whole(self.q, store)
        size, stride = len(q), self.stride
        if self.side == "in":
            made = empty((stop - start, *self.shape(store)[1:]))
            for low in range(start, stop, _ROWS):  # so that a large table is in memory once
                x = self.x.rows(store, low, min(low + _ROWS, stop))
                blocks = x.reshape(*x.shape[:-1], -1, size, stride)
                turned = (blocks.transpose(-1, -2) @ q).transpose(-1, -2)
                made[low - start : low - start + len(x)] = turned.reshape(x.shape)
            return made
        height = size * stride
        low, high = start // height * height, -(-stop // height) * height
        x = self.x.rows(store, low, high)
        turned = q.T @ x.reshape(-1, size, stride * x[0].numel())  # (blocks, size, stride of rows)
        return turned.reshape(x.shape)[start - low : stop - low]


@dataclass(frozen=True)
class LowRank(_Over):
    """x + scale * b @ a: an adapter, a (rank, columns), b (rows, rank)."""

    a: Expression
    b: Expression
    scale: float

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads these of x and of b, and all of a."""
        return self.x.rows(store, start, stop) + self.scale * (self.b.rows(store, start, stop) @ _whole(self.a, store))


@dataclass(frozen=True)
class RowLengths(_Over):
    """Each row of x in its direction, as long as a number of `by` (rows,) says: DoRA's magnitudes."""

    by: Expression

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads these, of both."""
        x = self.x.rows(store, start, stop)
        found: Tensor = x * (self.by.rows(store, start, stop) / x.norm(dim=1))[:, None]
        return found


@dataclass(frozen=True)
class Sum(Expression):
    """Several of one shape, added."""

    xs: tuple[Expression, ...]

    def shape(self, store: WeightStore) -> Shape:
        """Of the first."""
        return self.xs[0].shape(store)

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads these, of all."""
        return torch.stack([x.rows(store, start, stop) for x in self.xs]).sum(dim=0)


@dataclass(frozen=True)
class Transposed(Expression):
    """A matrix whose rows are the columns of x, which is small: all of it is read."""

    x: Expression

    def shape(self, store: WeightStore) -> Shape:
        """Of x, turned around."""
        rows, columns = self.x.shape(store)
        return columns, rows

    def rows(self, store: WeightStore, start: int, stop: int) -> Tensor:
        """Reads all of x."""
        return _whole(self.x, store).T[start:stop].contiguous()


def _whole(x: Expression, store: WeightStore) -> Tensor:
    return x.rows(store, 0, x.shape(store)[0])


def _without(shape: list[int], axis: int) -> list[int]:
    return shape[:axis] + shape[axis + 1 :]
