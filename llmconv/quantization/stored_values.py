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

    def finish(self, names: Collection[str]) -> None:
        """All samples have been added; keep the values of these names alone."""
        for file in self._writing.values():
            file.close()
        self._writing.clear()
        for name in self._paths.keys() - set(names):
            path = self._paths.pop(name)
            if path.parent == self._folder:  # not one of an earlier run, which may be needed again
                path.unlink()

    def read(self, name: str, sample: int) -> torch.Tensor:
        """A value of one sample, laid out as it was added."""
        stored = torch.from_numpy(np.asarray(np.load(self._paths[name], mmap_mode="c")[sample]))
        stride = self._strides.get(name, stored.stride())
        return torch.empty_strided(stored.shape, stride, dtype=stored.dtype).copy_(stored)

    def move(self, name: str, new: str, path: Path | None = None) -> None:
        """Give a value another name, and from now on a plain layout; where `path` is given, its file as well."""
        self._strides.pop(name, None)
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
