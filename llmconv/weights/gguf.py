"""The metadata and tensors of GGUF files, one tensor or a row range of one at a time, as `gguf` dequantizes them."""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmconv.encodings.fitting import fitted
from llmconv.errors import CheckpointError
from llmconv.files import check_no_pointer
from llmconv.weights.coded import Coded
from llmconv.weights.faults import check_apart, check_finite

MAGIC, VERSIONS = b"GGUF", (2, 3)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_QUANTS = 32  # of a block of Q4_0 and Q8_0
_PIECE = 1 << 20  # values that are dequantized at once
_LEAST_ENTRY = 12  # bytes that a key or a tensor takes in the header at the least


@dataclass(frozen=True)
class _Entry:
    file: Path
    kind: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray  # mapped; rows of floats, or rows of a quantized type's bytes


def shard_number(file: Path) -> int:
    """Which file of a split set it is; 1 where it is none."""
    found = _SHARD.fullmatch(file.name)
    return int(found.group(2)) if found else 1


def set_of(first: Path) -> list[Path]:
    """A file, or all files of the split set whose first it is.

    Raises:
        CheckpointError: it is another one of the set.
    """
    found = _SHARD.fullmatch(first.name)
    if found is None:
        return [first]
    stem, _, count, suffix = found.groups()
    if shard_number(first) != 1:
        message = f"is number {shard_number(first)} of a split set; give {stem}-00001-of-{count}{suffix}"
        raise CheckpointError(f"{first}: {message}")
    return [first.with_name(f"{stem}-{i:05}-of-{count}{suffix}") for i in range(1, int(count) + 1)]


class GGUFStore:
    """The tensors of GGUF files, by their names there, and the metadata of the first file.

    Headers are read and checked when the store is made; bytes only when a weight is asked for.

    Attributes:
        metadata: every key with its number, text or list.

    Raises:
        CheckpointError: a file is missing, damaged, of another version or byte order; a tensor that is asked for is
            missing or of a type that `gguf` does not dequantize.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._hashes: dict[str, str] = {}
        self._entries: dict[str, _Entry] = {}
        readers = [_open(file) for file in self.files]
        for file, reader in zip(self.files, readers, strict=True):
            check_apart(self._entries, file, (t.name for t in reader.tensors))
            for t in reader.tensors:
                shape = tuple(int(size) for size in reversed(t.shape))
                self._entries[t.name] = _Entry(file, t.tensor_type, shape, t.data)
        self.metadata = self._contents(readers[0].fields)
        count = self.metadata.get("split.tensors.count", len(self._entries))
        if count != len(self._entries):
            raise CheckpointError(
                f"{self.files[0]}: the set has {count} tensors, of which {len(self._entries)} are here; "
                "give the first file of the set, with the others beside it"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._entries)

    @property
    def types(self) -> Counter[str]:
        """How many tensors are stored as what."""
        return Counter(str(entry.kind.name) for entry in self._entries.values())

    def _contents(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the metadata say; not their places in the file, of which a vocabulary has a million."""
        try:
            return {name: field.contents() for name, field in fields.items()}
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{self.files[0]}: damaged metadata ({error}); download it again") from error

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.files[0]}: no tensor '{name}'; is the download complete?")
        entry = self._entries[name]
        if not _known(entry.kind):
            raise CheckpointError(
                f"{entry.file}: tensor '{name}' is of type {entry.kind.name}, which gguf does not dequantize; "
                "use another quantization of this model"
            )
        return entry

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, from the header."""
        return self._entry(name).shape

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32; only these rows are read."""
        entry = self._entry(name)
        data, shape = entry.data, entry.shape
        if len(shape) < 2:  # one row of a quantized type cannot be cut
            whole = torch.from_numpy(np.array(_dequantized(data.reshape(1, -1), entry)).reshape(shape))
            check_finite(whole, entry.file, name)
            self._hash(name, data)
            return whole if rows is None else whole[rows]
        start, stop, _ = (rows or slice(None)).indices(shape[0])
        weight = np.empty((max(0, stop - start), *shape[1:]), dtype=np.float32)
        step = max(1, _PIECE // max(1, prod(shape[1:])))
        for i in range(0, len(weight), step):
            weight[i : i + step] = _dequantized(data[start + i : min(start + i + step, stop)], entry)
            check_finite(torch.from_numpy(weight[i : i + step]), entry.file, name)
        if (start, stop) == (0, shape[0]):
            self._hash(name, data)
        _let_go(data)
        return torch.from_numpy(weight)

    def coded(self, name: str) -> Coded | str | None:
        """A weight of Q4_0 or Q8_0 on its grid, where one of QNN's has its blocks' scales; None of other types."""
        entry = self._entry(name)
        if entry.kind.name not in ("Q4_0", "Q8_0") or len(entry.shape) != 2:
            return None
        bits = 4 if entry.kind.name == "Q4_0" else 8
        blocks = np.ascontiguousarray(entry.data).reshape(entry.shape[0], entry.shape[1] // _QUANTS, -1)
        scales = torch.from_numpy(blocks[..., :2].copy().view(np.float16)[..., 0])
        grid = fitted(scales.float(), _QUANTS, bits, torch.finfo(scales.dtype).eps / 2)

        def ints() -> torch.Tensor:
            found = blocks[..., 2:]
            if bits == 4:  # the first half of a block lies in the low halves of its bytes
                found = np.concatenate([found & 0xF, found >> 4], axis=-1).astype(np.int8) - 8
            self._hash(name, entry.data)
            return torch.from_numpy(found.view(np.int8).reshape(entry.shape).copy())

        return grid if isinstance(grid, str) else Coded(*grid, ints)

    def _hash(self, name: str, data: np.ndarray) -> None:
        if name not in self._hashes:
            self._hashes[name] = hashlib.sha256(np.ascontiguousarray(data).view(np.uint8).data).hexdigest()

    def sha256(self, name: str) -> str | None:
        """Of a weight's bytes, once it has been read whole."""
        return self._hashes.get(name)


def _let_go(data: np.ndarray) -> None:
    """Have what was read of a mapped file no longer count as memory of this process; the system may keep it."""
    while isinstance(data.base, np.ndarray):
        data = data.base
    if isinstance(data.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        data.base.madvise(mmap.MADV_DONTNEED)


@cache
def _known(kind: Any) -> bool:
    """Whether `gguf` can dequantize a type, tried on one block."""
    import gguf  # noqa: PLC0415  0.2 s that those without such a file should not pay

    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return True
    _, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _dequantized(data: np.ndarray, entry: _Entry) -> np.ndarray:
    import gguf  # noqa: PLC0415  likewise

    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found where it is used
        found: np.ndarray = gguf.dequantize(data, entry.kind)
    return found.astype(np.float32, copy=False)


def _open(file: Path) -> Any:
    """The library's reader.

    Raises:
        CheckpointError: as of `GGUFStore`.
    """
    check_no_pointer(file)
    _check_header(file)
    import gguf  # noqa: PLC0415  likewise

    class Reader(gguf.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            """As the library's, which takes what lies behind the file's end for nothing, and goes on; and faster."""
            return np.frombuffer(self.data, dtype, int(count), int(offset))

    try:
        with np.errstate(over="ignore"):  # a damaged size; found by the check above
            return Reader(file)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: damaged or truncated ({_said(error)}); download it again") from error


def _said(error: Exception) -> str:
    return " ".join(str(error).strip("'\"").split())[:200] or type(error).__name__


def _check_header(file: Path) -> None:
    """The first bytes, before numbers in them are believed."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(24)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing; is the download complete?") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if head[:4] != MAGIC or len(head) < 24:
        raise CheckpointError(f"{file}: not a GGUF file; download it again")
    version, tensors, keys = struct.unpack("<IQQ", head[4:])
    if version & 0xFFFF == 0:
        raise CheckpointError(f"{file}: is for big-endian machines; download the little-endian one")
    if version not in VERSIONS:
        raise CheckpointError(f"{file}: is of GGUF version {version}, not {' or '.join(map(str, VERSIONS))}")
    if (tensors + keys) * _LEAST_ENTRY > size:
        raise CheckpointError(f"{file}: damaged: announces {tensors:,} tensors and {keys:,} keys in {size:,} bytes")
