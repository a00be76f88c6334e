"""The one file of a part's weights: packed and appended block by block, and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from llmconv.encodings.grid import Block, Encoded, Grid, PerBlock, PerRow, block_scales
from llmconv.encodings.noise import Noise
from llmconv.errors import LoweringError

_ALIGNMENT = 64  # bytes; where a weight starts
COMPARED = 32  # of so many blocks, one is compared with what rounding made of it, which takes as long as rounding
_DTYPES = {4: np.uint8, 8: np.int8, 16: np.uint16, 32: np.float32}  # of the file, by bits


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
        multipliers: (rows, blocks) uint8, of the row's scale, of a weight in blocks.
    """

    bits: int
    offset: int
    row_bytes: int
    scale: NDArray[np.float32]
    zero_point: int
    shape: tuple[int, ...]
    multipliers: NDArray[np.uint8] | None = None

    @property
    def rows(self) -> int:
        """How many rows there are; a scalar is one."""
        return self.shape[0] if self.shape else 1

    @property
    def grid(self) -> Grid:
        """The grid of the integers."""
        if self.bits == 16:
            return Grid(self.bits, symmetric=False)
        return Grid(self.bits, PerBlock(self.block) if self.block else PerRow())

    @property
    def block(self) -> int:
        """Columns of a block; 0 where a row has one scale."""
        return 0 if self.multipliers is None else prod(self.shape[1:]) // self.multipliers.shape[1]

    @property
    def block_scales(self) -> int:
        """Where the scales of blocks begin, (rows, blocks) float32, bytes."""
        return self.offset + self.row_bytes * self.rows + self.scale.nbytes

    @property
    def nbytes(self) -> int:
        """Of the integers and all that scales them."""
        return self.row_bytes * self.rows + self.scale.nbytes + (self.multipliers.size if self.block else 0)  # type: ignore[union-attr]


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


def read_placed(file: BinaryIO, item: Mapping[str, Any]) -> Placed:
    """A weight's place from its entry in an index; its scales are read from the file."""
    shape = tuple(item["shape"])
    file.seek(item["offset"] + item["row_bytes"] * (shape[0] if shape else 1))
    scale = np.frombuffer(file.read(4 * item["scale"]), np.float32)
    multipliers = None
    if blocks := item["blocks"]:
        scales = np.frombuffer(file.read(4 * item["scale"] * blocks), np.float32).reshape(-1, blocks)
        multipliers = np.rint(scales / scale[:, None]).astype(np.uint8)
    return Placed(item["bits"], item["offset"], item["row_bytes"], scale, item["zero_point"], shape, multipliers)


def read_rows(file: BinaryIO, placed: Placed, rows: slice | None = None) -> torch.Tensor:
    """A weight, or a range of its rows, as float32; reads those rows alone."""
    start, stop, _ = (rows or slice(None)).indices(placed.rows)
    file.seek(placed.offset + placed.row_bytes * start)
    raw = np.frombuffer(bytearray(file.read(placed.row_bytes * (stop - start))), dtype=_DTYPES[placed.bits])
    shape = (stop - start, *placed.shape[1:]) if placed.shape else ()
    stored = torch.from_numpy(unpack_int4(raw, prod(shape)) if placed.bits == 4 else raw).reshape(shape)
    if placed.bits == 32:
        return stored
    scale = placed.scale[start:stop] if placed.bits < 16 else placed.scale
    blocks = None if placed.multipliers is None else torch.from_numpy(placed.multipliers[start:stop].copy())
    return Encoded(stored, torch.from_numpy(scale.copy()), placed.zero_point, placed.grid, blocks).dequantize()


class WeightFile:
    """Writes a part's weights; every graph of the part refers to the same bytes.

    Used as a context manager: the file is open inside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.placed: dict[str, Placed] = {}
        self.rounding: dict[str, Noise] = {}  # over the blocks that are compared
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
        return {name: _entry(placed) for name, placed in self.placed.items()}

    def restore(self, index: dict[str, dict[str, Any]]) -> None:
        """Go on with a file that was written before; `index` is of then."""
        with self.path.open("rb") as file:
            self.placed |= {name: read_placed(file, item) for name, item in index.items()}

    def write(self, name: str, shape: tuple[int, ...], blocks: Iterable[Block]) -> None:
        """Append a weight.

        Args:
            blocks: its rows, in order.

        Raises:
            LoweringError: its rows are to have 4 bits, and do not end at a byte.
        """
        bits, zero_point, noise = 32, 0, Noise()
        scales: list[NDArray[np.float32]] = []
        multiplied: list[NDArray[np.uint8]] = []
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        for i, (exact, encoded) in enumerate(blocks):
            if i == 0:
                bits = 32 if encoded is None else encoded.grid.bits
                if bits == 4 and prod(shape[1:]) % 2:  # readers take rows by whole bytes
                    raise LoweringError(f"weight '{name}' of shape {list(shape)} has odd rows; give it 8 bits")
                self._append(b"\0" * (offset - self._file.tell()))
            if encoded is None:
                self._append(exact.contiguous().numpy().data)
                continue
            zero_point = encoded.zero_point
            scales.append(encoded.scale.numpy())
            if encoded.multipliers is not None:
                multiplied.append(encoded.multipliers.numpy())
            if i % COMPARED == 0:
                noise.add(exact.numpy(), encoded.dequantize().numpy())
            self._append(_bytes(encoded.ints, bits))
        if bits == 16:
            scales = scales[:1]  # per tensor: every block has the same
        every = np.concatenate([np.empty(0, np.float32), *scales])
        self._append(every.data)  # behind the integers, for readers other than ONNX
        multipliers = np.concatenate(multiplied) if multiplied else None
        if multipliers is not None:  # as ONNX has them
            self._append(block_scales(torch.from_numpy(every), torch.from_numpy(multipliers)).numpy().data)
        if bits < 32:
            self.rounding[name] = noise
        row_bytes = prod(shape[1:]) * bits // 8
        self.placed[name] = Placed(bits, offset, row_bytes, every, zero_point, shape, multipliers)

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)


def _entry(placed: Placed) -> dict[str, Any]:
    numbers = {"scale": len(placed.scale), "blocks": 0 if placed.multipliers is None else placed.multipliers.shape[1]}
    return {f.name: getattr(placed, f.name) for f in fields(placed) if f.name not in ("scale", "multipliers")} | numbers


def _bytes(ints: torch.Tensor, bits: int) -> memoryview:
    if bits == 4:
        return pack_int4(ints.numpy()).data
    return ints.contiguous().numpy().data if bits == 8 else ints.numpy().astype(np.uint16).data
