"""Weights in PyTorch's zip files (`pytorch_model*.bin`, `consolidated.*.pth`): mapped into memory, no code run."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from llmconv.errors import CheckpointError
from llmconv.files import check_no_pointer
from llmconv.weights.faults import check_apart, check_finite

MAPPED_BYTES = 64 * 2**20  # read through one mapping: its pages count as this process's memory until it is closed

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_FOREIGN = re.compile(r"(?:global: GLOBAL|unsupported GLOBAL|unrecognized function) (\S+)")  # in torch's messages


@dataclass(frozen=True)
class _Entry:
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass
class _Mapping:
    file: Path
    state: tuple[int, ...]
    tensors: dict[str, torch.Tensor]
    read: int = 0  # bytes so far


class PickleStore:
    """The tensors of files that `torch.save` wrote, by their names there.

    The pickles inside are read by torch's interpreter of tensors alone (`weights_only`), which calls nothing that they
    name. Names, types and shapes are read when the store is made; pages are touched when a weight is asked for.

    Raises:
        CheckpointError: a file is missing, damaged, of the format before PyTorch 1.6, or holds more than tensors; a
            tensor is missing or of a type that is no float.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._entries: dict[str, _Entry] = {}
        self._hashes: dict[str, str] = {}
        self._mapping: _Mapping | None = None
        self._lock = threading.Lock()
        for file in files:
            found = {name: _Entry(file, t.dtype, tuple(t.shape)) for name, t in _open(file).tensors.items()}
            check_apart(self._entries, file, found)
            self._entries |= found

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._entries)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            where = self.files[0] if len(self.files) == 1 else self.files[0].parent if self.files else "the checkpoint"
            raise CheckpointError(f"{where}: no tensor '{name}'; is the download complete?")
        entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            allowed = ", ".join(_dtype_name(d) for d in _DTYPES)
            raise CheckpointError(
                f"{entry.file}: tensor '{name}' has dtype {_dtype_name(entry.dtype)}; use one of {allowed}"
            )
        return entry

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, without reading it."""
        return self._entry(name).shape

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32."""
        entry = self._entry(name)
        found = self._part(name, entry, rows).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        check_finite(found, entry.file, name)
        return found

    def stored(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or a range of its rows, in the type that the file has, as it is mapped."""
        entry = self._entries.get(name) or self._entry(name)
        part = self._part(name, entry, rows)
        if part.is_floating_point():
            check_finite(part, entry.file, name)
        return part

    def _part(self, name: str, entry: _Entry, rows: slice | None) -> torch.Tensor:
        with self._lock:  # weights are read ahead in a thread
            mapping = self._mapped(entry.file)
            tensor = mapping.tensors.get(name)
            if tensor is None or _Entry(entry.file, tensor.dtype, tuple(tensor.shape)) != entry:
                raise CheckpointError(f"{entry.file}: changed while it was read; run again")
            part = tensor if rows is None or not entry.shape else tensor[rows]
            mapping.read += part.nbytes
            if mapping.read >= MAPPED_BYTES:
                self._mapping = None  # unmapped when `part` is gone
        whole = rows is None or not entry.shape or rows.indices(entry.shape[0]) == (0, entry.shape[0], 1)
        if whole and name not in self._hashes:
            self._hashes[name] = hashlib.sha256(part.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
        return part

    def sha256(self, name: str) -> str | None:
        """Of a weight's bytes, once it has been read whole."""
        return self._hashes.get(name)

    def _mapped(self, file: Path) -> _Mapping:
        """The open mapping, or a new one where it is of another file or the file is no longer the same."""
        if self._mapping is None or self._mapping.file != file or self._mapping.state != _state(file):
            self._mapping = None  # before the next: two mappings would count twice
            self._mapping = _open(file)
        return self._mapping


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _state(file: Path) -> tuple[int, ...]:
    """What changes when a file does: touching a mapped page that was cut off would kill the process."""
    try:
        found = file.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing; is the download complete?") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _open(file: Path) -> _Mapping:
    state = _state(file)
    _check_container(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        foreign = _FOREIGN.search(str(error))
        what = f"wants to run {foreign[1][:80]!r}" if foreign else "holds more than tensors, or is damaged"
        raise CheckpointError(
            f"{file}: refused, its code was not run: it {what}; get the model as safetensors"
        ) from error
    except Exception as error:  # torch's interpreter raises whatever a damaged pickle provokes
        raise CheckpointError(f"{file}: damaged; download it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: holds a {type(found).__name__}, not tensors by name; save the state dict alone")
    return _Mapping(file, state, {str(name): t.detach() for name, t in found.items() if _is_plain(t)})


def _is_plain(value: object) -> bool:
    """Whether an entry is an ordinary tensor with data in the file."""
    return (
        isinstance(value, torch.Tensor)
        and type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _check_container(file: Path) -> None:
    """Refuse what torch would read without mapping it, or map to the wrong bytes."""
    check_no_pointer(file)
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
        if magic == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
            protocol = _protocol(file, entries)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    except Exception as error:  # zipfile raises whatever a damaged directory provokes
        raise CheckpointError(f"{file}: truncated or damaged; download it again") from error
    if magic[:1] == b"\x80":
        raise CheckpointError(
            f"{file}: in the format before PyTorch 1.6, which cannot be mapped into memory; re-save it as safetensors, "
            f"or with torch.save(torch.load(FILE, weights_only=True), FILE)"
        )
    if magic != b"PK\x03\x04":
        raise CheckpointError(f"{file}: not a PyTorch file; download it again")
    if any(Path(entry.filename).name == "constants.pkl" for entry in entries):
        raise CheckpointError(
            f"{file}: refused, its code was not run: it is a TorchScript program; save its state dict"
        )
    if protocol[:1] == b"\x80" and protocol != b"\x80\x02":  # torch's interpreter warns of others, then fails
        raise CheckpointError(
            f"{file}: refused, its code was not run: its pickle is not of protocol 2, as torch.save writes it; "
            f"get the model as safetensors"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{file}: compressed, which torch.save never does; download it again")


def _protocol(file: Path, entries: list[zipfile.ZipInfo]) -> bytes:
    """The first two bytes of the pickle inside, if there is one; zipfile would want its CRC, which is optional here."""
    inside = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if not inside:
        return b""
    with file.open("rb") as stream:
        stream.seek(inside[0].header_offset + 26)  # of the local header's 30 bytes
        name, extra = struct.unpack("<HH", stream.read(4))
        stream.seek(name + extra, os.SEEK_CUR)
        return stream.read(2)
