"""The host's KV cache: a buffer for the keys of each layer and one for its values, written in place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Slot:
    """The keys or the values of one layer, in the type that the graphs have.

    Its buffer has the length of the graph that reads it, so that the graph is given the buffer itself. It is laid out
    anew where a graph of another length reads on, and not for a token that the same graph goes on with.

    Args:
        axis: the one that holds positions.
        dtype: of the graphs' tensors.
        empty: what stands where nothing is cached: the integer that means zero.
        room: positions of the longest past that a graph takes; later ones are never read.
    """

    def __init__(self, axis: int, dtype: str, empty: int, room: int) -> None:
        self.axis, self.dtype, self.empty, self.room = axis, np.dtype(dtype), empty, room
        self.reset()

    def reset(self) -> None:
        """Forget all positions."""
        self._buffer: NDArray[np.generic] | None = None

    def past(self, shape: tuple[int, ...], filled: int) -> NDArray[np.generic]:
        """The buffer in the shape that a graph takes; what is written later is written into it.

        Args:
            filled: how many positions of it are cached.
        """
        if self._buffer is None or self._buffer.shape != shape:
            return self._lay_out(shape, filled)
        return self._buffer

    def write(self, new: NDArray[np.generic], count: int, at: int) -> None:
        """Cache the first `count` positions of `new` behind `at` others."""
        end = min(at + count, self.room)
        if end <= at:
            return
        buffer = self._buffer
        if buffer is None or buffer.shape[self.axis] < end:
            buffer = self._lay_out((*new.shape[: self.axis], self.room, *new.shape[self.axis + 1 :]), at)
        np.copyto(buffer[self._positions(at, end)], new[self._positions(0, end - at)], casting="same_kind")

    def drop(self, first: int, count: int, filled: int) -> None:
        """Forget `count` cached positions behind the first ones; those behind them move up.

        Args:
            filled: how many are cached.
        """
        if self._buffer is not None:
            later = self._buffer[self._positions(first + count, filled)].copy()
            self._buffer[self._positions(first, filled - count)] = later

    def _lay_out(self, shape: tuple[int, ...], filled: int) -> NDArray[np.generic]:
        made: NDArray[np.generic] = np.full(shape, self.empty, self.dtype)
        if self._buffer is not None:
            cached = self._positions(0, filled)
            made[cached] = self._buffer[cached]
        self._buffer = made
        return made

    def _positions(self, start: int, end: int) -> tuple[slice, ...]:
        return (*[slice(None)] * self.axis, slice(start, end))
