"""The one file of a part's weights: quantized, packed and appended as each is first needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from llmconv.checkpoint.weights import WeightStore
from llmconv.errors import LoweringError
from llmconv.graph.encodings import WeightEncoding

_ALIGNMENT = 64  # bytes; where a weight starts


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
    flat = values.reshape(-1).view(np.uint8) & 0xF
    if flat.size % 2:
        flat = np.pad(flat, (0, 1))
    return (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)


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

    def __enter__(self) -> WeightFile:
        self._file = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def place(self, name: str) -> Placed:
        """Where the weight lies; writes it when asked for the first time.

        Raises:
            LoweringError: its rows are to have 4 bits, and do not end at a byte.
        """
        if name not in self.placed:
            self.placed[name] = self._write(name)
        return self.placed[name]

    def _write(self, name: str) -> Placed:
        weight, encoding = self.weights.read(name), self.encodings.get(name)
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.write(b"\0" * (offset - self._file.tell()))
        rows = weight.shape[0] if weight.ndim else 1
        if encoding is None:
            data = weight.to(torch.float32).contiguous().numpy().tobytes()
            self._file.write(data)
            return Placed(32, offset, len(data) // rows, np.empty(0, np.float32), 0, tuple(weight.shape))
        ints, scale, zero_point = encoding.quantize(weight)
        if encoding.bits == 4:
            if weight.numel() // rows % 2:  # readers take rows by whole bytes
                raise LoweringError(f"weight '{name}' of shape {list(weight.shape)} has odd rows; give it 8 bits")
            data = pack_int4(ints.to(torch.int8).numpy()).tobytes()
        elif encoding.bits == 8:
            data = ints.to(torch.int8).numpy().tobytes()
        else:
            data = ints.numpy().astype(np.uint16).tobytes()
        self._file.write(data)
        self._file.write(scale.numpy().tobytes())  # behind the integers, for readers other than ONNX
        return Placed(encoding.bits, offset, len(data) // rows, scale.numpy(), zero_point, tuple(weight.shape))
