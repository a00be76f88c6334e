"""The one file of a part's weights, quantized and packed block by block, appended as each is first needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmconv.encodings.value import WeightEncoding
from llmconv.errors import LoweringError
from llmconv.weights.store import WeightStore

_ALIGNMENT = 64  # bytes; where a weight starts
COMPARED = 32  # of so many blocks, one is compared with what rounding made of it, which takes as long as rounding
_BLOCK = 1 << 18  # elements of the rows that are quantized at once: small enough for a core's cache


@dataclass(frozen=True)
class Placed:
    """Where a weight lies in the file, and how its integers are to be read.

    Attributes:
        bits: 4 or 8 signed, 16 unsigned, 32 float.
        offset: of the first row, bytes.
        row_bytes: bytes of one row, a whole number.
        scale: (rows,) or (1,) float32; empty for floats.
        zero_point: of the integers.
        shape: of the weight as the checkpoint has it.
    """

    bits: int
    offset: int
    row_bytes: int
    scale: NDArray[np.float32]
    zero_point: int
    shape: tuple[int, ...]


def pack_int4(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two signed 4-bit integers a byte, the first in the low half, as ONNX stores INT4."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.size % 2:
        flat = np.pad(flat, (0, 1))
    pairs = flat.view("<u2")
    return ((pairs & 0xF) | ((pairs >> 4) & 0xF0)).astype(np.uint8)


def unpack_int4(packed: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """The inverse of `pack_int4`."""
    halves = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(-1)[:count].astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(np.int8)


class WeightFile:
    """Writes a part's weights; every graph of the part refers to the same bytes.

    Used as a context manager: the file is open inside it.
    """

    def __init__(self, path: Path, weights: WeightStore, encodings: dict[str, WeightEncoding]) -> None:
        self.path, self.weights, self.encodings = path, weights, encodings
        self.placed: dict[str, Placed] = {}
        # Sums of squares over the blocks that are compared: of the weight, of what rounding changed.
        self.rounding: dict[str, tuple[float, float]] = {}
        self._hash = hashlib.sha256()

    def __enter__(self) -> WeightFile:
        self._file = self.path.open("ab" if self.placed else "wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def flush(self) -> str:
        """Have all that was written in the file; gives the sha256 of a file that was begun here."""
        self._file.flush()
        return self._hash.hexdigest()

    def index(self) -> dict[str, dict[str, Any]]:
        """What lies where, as JSON; scales stay in the file, behind the integers."""
        return {name: {**asdict(placed), "scale": len(placed.scale)} for name, placed in self.placed.items()}

    def restore(self, index: dict[str, dict[str, Any]]) -> None:
        """Go on with a file that was written before; `index` is of then."""
        with self.path.open("rb") as file:
            for name, item in index.items():
                shape = tuple(item["shape"])
                file.seek(item["offset"] + item["row_bytes"] * (shape[0] if shape else 1))
                scale = np.frombuffer(file.read(4 * item["scale"]), np.float32)
                self.placed[name] = Placed(**{**item, "shape": shape, "scale": scale})

    def place(self, name: str) -> Placed:
        """Where the weight lies; reads and writes it when asked for the first time.

        Raises:
            LoweringError: its rows are to have 4 bits, and do not end at a byte.
        """
        if name not in self.placed:
            shape, encoding = self.weights.shape(name), self.encodings.get(name)
            whole = not shape or (encoding is not None and not encoding.per_row and encoding.encoding is None)
            slices = [None] if whole else _row_slices(shape)
            self._write(name, encoding, shape, (self.weights.read(name, rows) for rows in slices))
        return self.placed[name]

    def take(self, name: str, weight: torch.Tensor) -> None:
        """Write a weight that has just been read for something else; raises as `place` does."""
        if name in self.placed:
            return
        encoding, shape = self.encodings.get(name), tuple(weight.shape)
        if encoding is not None and not encoding.per_row and encoding.encoding is None:
            encoding = WeightEncoding(encoding.bits, encoding=encoding.of(weight))
        slices = _row_slices(shape) if shape else [None]
        self._write(name, encoding, shape, (weight if rows is None else weight[rows] for rows in slices))

    def _write(
        self, name: str, encoding: WeightEncoding | None, shape: tuple[int, ...], blocks: Iterable[torch.Tensor]
    ) -> None:
        bits, columns = 32 if encoding is None else encoding.bits, prod(shape[1:])
        if bits == 4 and columns % 2:  # readers take rows by whole bytes
            raise LoweringError(f"weight '{name}' of shape {list(shape)} has odd rows; give it 8 bits")
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._append(b"\0" * (offset - self._file.tell()))
        scales: list[NDArray[np.float32]] = []
        zero_point, signal, noise = 0, 0.0, 0.0
        for i, block in enumerate(blocks):
            if encoding is None:
                self._append(block.contiguous().numpy().data)
                continue
            ints, scale, zero_point = encoding.quantize(block)
            scales.append(scale.numpy())
            if i % COMPARED == 0:
                lost = _dequantized(ints, scale, zero_point).sub_(block).reshape(-1)
                signal, noise = signal + _square(block.reshape(-1)), noise + _square(lost)
            self._append(_bytes(ints, bits))
        if bits == 16:
            scales = scales[:1]  # per tensor: every block has the same
        every = np.concatenate([np.empty(0, np.float32), *scales])
        self._append(every.data)  # behind the integers, for readers other than ONNX
        if encoding is not None:
            self.rounding[name] = (signal, noise)
        self.placed[name] = Placed(bits, offset, columns * bits // 8, every, zero_point, shape)

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)


def _row_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, _BLOCK // max(1, prod(shape[1:])))
    return (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


def _dequantized(ints: torch.Tensor, scale: torch.Tensor, zero_point: int) -> torch.Tensor:
    return ints.to(torch.float32).sub_(zero_point) * scale.reshape(-1, *[1] * (ints.ndim - 1))


def _square(values: torch.Tensor) -> float:
    return float(torch.dot(values, values))


def _bytes(ints: torch.Tensor, bits: int) -> memoryview:
    if bits == 4:
        return pack_int4(ints.numpy()).data
    return ints.contiguous().numpy().data if bits == 8 else ints.numpy().astype(np.uint16).data
