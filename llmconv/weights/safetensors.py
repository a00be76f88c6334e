"""The tensors of safetensors files, one or a row range of one at a time."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

import torch

from llmconv.errors import CheckpointError
from llmconv.files import check_no_pointer
from llmconv.heap import empty
from llmconv.weights.faults import check_apart, check_finite

_PIECE = 1 << 19  # values that are read, hashed and converted at once: small enough for a core's cache


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_OTHERS = {
    **{"I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    "BOOL": torch.bool,
}


_State = tuple[int, int, int, int]  # of a file: what changes when it is written to, or another takes its place


@dataclass(frozen=True)
class _Entry:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int


class SafetensorsStore:
    """The tensors of safetensors files, by their names there.

    Headers are read and checked when the store is made; bytes only when a weight is asked for.

    Raises:
        CheckpointError: a file is missing, truncated, or its header is damaged; a tensor lies in two files; one that is
            asked for is missing, of a type that is no float, or not finite.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._entries: dict[str, _Entry] = {}
        self._hashes: dict[str, str] = {}
        self._ahead: dict[str, tuple[_State, str]] = {}  # of tensors before they were read
        self._reads = False
        for file in files:
            found = _read_header(file)
            check_apart(self._entries, file, found)
            self._entries |= found

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._entries)

    @property
    def types(self) -> Counter[str]:
        """How many tensors are stored as what."""
        return Counter(entry.dtype for entry in self._entries.values())

    def _entry(self, name: str, types: Mapping[str, torch.dtype] = _DTYPES) -> _Entry:
        if name not in self._entries:
            where = self.files[0].parent if self.files else "the checkpoint"
            raise CheckpointError(f"{where}: no tensor '{name}'; is the download complete?")
        entry = self._entries[name]
        if entry.dtype not in types:
            raise CheckpointError(
                f"{entry.file}: tensor '{name}' has dtype {entry.dtype}; use one of {', '.join(types)}"
            )
        return entry

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, from the header."""
        return self._entry(name).shape

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32."""
        self._reads = True
        entry = self._entry(name)
        start, stop, _ = (rows or slice(None)).indices(entry.shape[0] if entry.shape else 1)
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        row_bytes = (entry.end - entry.begin) // (entry.shape[0] if entry.shape else 1)
        weight = empty(shape)
        piece = torch.empty(min(_PIECE, weight.numel()), dtype=_DTYPES[entry.dtype])
        all_rows = not entry.shape or (start, stop) == (0, entry.shape[0])
        with entry.file.open("rb") as file:
            whole = hashlib.sha256() if all_rows and not self._is_hashed(name, file) else None
            file.seek(entry.begin + start * row_bytes)
            for values in torch.split(weight.view(-1), _PIECE):
                stored = piece[: len(values)]
                data = stored.view(torch.uint8).numpy().data
                if file.readinto(data) != len(data):
                    raise CheckpointError(f"{entry.file}: ends inside tensor '{name}'; download it again")
                if whole is not None:
                    whole.update(data)
                values.copy_(stored)
                check_finite(values, entry.file, name)
        if whole is not None:
            self._hashes[name] = whole.hexdigest()
        return weight

    def stored(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or a range of its rows, in the type that the file has; for integers that stand for weights."""
        self._reads = True
        types = _DTYPES | _OTHERS
        entry = self._entry(name, types)
        start, stop, _ = (rows or slice(None)).indices(entry.shape[0] if entry.shape else 1)
        row_bytes = (entry.end - entry.begin) // (entry.shape[0] if entry.shape else 1)
        with entry.file.open("rb") as file:
            file.seek(entry.begin + start * row_bytes)
            data = bytearray(file.read(row_bytes * (stop - start)))
            if len(data) != row_bytes * (stop - start):
                raise CheckpointError(f"{entry.file}: ends inside tensor '{name}'; download it again")
            if len(data) == entry.end - entry.begin and not self._is_hashed(name, file):
                self._hashes[name] = hashlib.sha256(data).hexdigest()
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        found = torch.frombuffer(data, dtype=types[entry.dtype]).reshape(shape)
        if found.is_floating_point():
            check_finite(found, entry.file, name)
        return found

    def hash_ahead(self, room: int, over: Event) -> int:
        """As of `HashingStore`, in the order of the headers; a fault in a file is left for `read` to find."""
        for name, entry in self._entries.items():
            room -= entry.end - entry.begin
            if room < 0 or self._reads or over.is_set():
                break
            with suppress(OSError), entry.file.open("rb", buffering=0) as file:
                state = _state(file)
                if found := self._hash(file, entry, over):
                    self._ahead[name] = state, found
        return max(0, room)

    def _is_hashed(self, name: str, file: BinaryIO) -> bool:
        """Whether a tensor that is read whole has its hash; that may be one taken ahead, of the file as it is now."""
        known = self._ahead.get(name)
        if name not in self._hashes and known is not None and known[0] == _state(file):
            self._hashes[name] = known[1]
        return name in self._hashes

    def _hash(self, file: FileIO, entry: _Entry, over: Event) -> str | None:
        """Of a tensor's bytes; None where the file ends before, or nobody needs it any more."""
        found, piece, left = hashlib.sha256(), memoryview(bytearray(2 * _PIECE)), entry.end - entry.begin
        file.seek(entry.begin)
        while left and not (self._reads or over.is_set()):
            count = file.readinto(piece[:left])
            if not count:
                return None
            found.update(piece[:count])
            left -= count
        return None if left else found.hexdigest()

    def sha256(self, name: str) -> str | None:
        """Of a weight's bytes, once it has been read whole."""
        return self._hashes.get(name)


def _state(file: BinaryIO | FileIO) -> _State:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read_header(file: Path) -> dict[str, _Entry]:
    check_no_pointer(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise CheckpointError(f"{file}: truncated inside its header; download it again")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        return {name: _read_entry(file, name, item, 8 + length, size) for name, item in header.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing; is the download complete?") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    except (struct.error, ValueError, TypeError, LookupError, AttributeError) as error:  # a header of another form
        raise CheckpointError(f"{file}: not a safetensors file; download it again") from error


def _read_entry(file: Path, name: str, item: dict[str, Any], data: int, size: int) -> _Entry:
    """One tensor of a header; `data` is where the file's tensors begin."""
    begin, end = (data + offset for offset in item["data_offsets"])
    entry = _Entry(file, item["dtype"], tuple(item["shape"]), begin, end)
    if end > size:
        raise CheckpointError(f"{file}: truncated: tensor '{name}' ends at byte {end} of {size}; download it again")
    known = _DTYPES.get(entry.dtype)  # others are refused where they are asked for
    if known is not None and end - begin != torch.Size(entry.shape).numel() * known.itemsize:
        raise CheckpointError(f"{file}: tensor '{name}' has {end - begin} bytes, not what its shape needs")
    return entry
