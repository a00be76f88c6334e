"""Values of all samples on disk, a file each, so that memory holds those of one batch alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch


class StoredValues:
    """Takes the samples in order and gives them back in any.

    Args:
        folder: for the files.
        samples: how many there are.
    """

    def __init__(self, folder: Path, samples: int) -> None:
        self._folder, self._samples = folder, samples
        self._numbers = count()
        self._paths: dict[str, Path] = {}
        self._writing: dict[str, BinaryIO] = {}
        self._reading: dict[str, _File] = {}
        self._strides: dict[str, tuple[int, ...]] = {}  # an op's sums depend on them

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Append the values of the next sample."""
        for name, value in values.items():
            array = value.contiguous().numpy()
            if name not in self._writing:
                self._strides[name] = value.stride()
                self._writing[name] = self._begin(name, array)
            self._writing[name].write(array.data)

    def _begin(self, name: str, array: np.ndarray) -> BinaryIO:
        self._paths[name] = self._folder / f"{next(self._numbers)}.npy"
        file = self._paths[name].open("wb")
        shape, descr = (self._samples, *array.shape), np.lib.format.dtype_to_descr(array.dtype)
        np.lib.format.write_array_header_1_0(file, {"shape": shape, "descr": descr, "fortran_order": False})
        return file

    def close(self) -> None:
        """All samples have been added: they can be read."""
        for file in self._writing.values():
            file.close()
        self._writing.clear()
        self._reading.clear()

    def finish(self, names: Collection[str]) -> None:
        """`close`, and keep the values of these names alone."""
        self.close()
        for name in self._paths.keys() - set(names):
            path = self._paths.pop(name)
            if path.parent == self._folder:  # not one of an earlier run, which may be needed again
                path.unlink()

    def read(self, name: str, sample: int) -> torch.Tensor:
        """A value of one sample, laid out as it was added."""
        found = self._reading.get(name)
        if found is None:
            found = self._reading[name] = _File(self._paths[name])
        value = found.read(sample)
        stride = self._strides.get(name, value.stride())
        if stride == value.stride():
            return value
        return torch.empty_strided(value.shape, stride, dtype=value.dtype).copy_(value)

    def move(self, name: str, new: str, path: Path | None = None) -> None:
        """Give a value another name, and from now on a plain layout; where `path` is given, its file as well."""
        self._strides.pop(name, None)
        self._reading.pop(name, None)
        old = self._paths.pop(name)
        self._paths[new] = old if path is None else old.replace(path)

    def open(self, name: str, path: Path, strides: Sequence[int] | None = None) -> None:
        """Take over a file of an earlier run.

        Args:
            strides: as `snapshot` gave them; a plain layout by default.
        """
        self._paths[name] = path
        if strides is not None:
            self._strides[name] = tuple(strides)

    def snapshot(self) -> Iterator[tuple[str, Path, Sequence[int] | None]]:
        """Each value's name, file and layout, for a run that is to go on from here; `open` takes them."""
        for name, path in self._paths.items():
            yield name, path, self._strides.get(name)


class _File:
    """A value's file, whose samples are read one by one; its header is looked at once."""

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r")
        self._path, self._start = path, mapped.offset
        self._shape, self._dtype = mapped.shape[1:], mapped.dtype

    def read(self, sample: int) -> torch.Tensor:
        found = np.empty(self._shape, self._dtype)
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._start + sample * found.nbytes)
            if file.readinto(found.reshape(-1).view(np.uint8).data) != found.nbytes:
                raise OSError(f"{self._path}: ends within sample {sample + 1}")
        return torch.from_numpy(found)
