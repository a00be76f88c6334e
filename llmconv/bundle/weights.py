"""The weights and encodings that a finished bundle holds."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmconv.bundle.part_file import Placed, unpack_int4
from llmconv.encodings.value import Encoding, Encodings
from llmconv.errors import BundleError

ENCODINGS = "encodings.json"


_DTYPES = {4: np.uint8, 8: np.int8, 16: np.uint16, 32: np.float32}  # of the file, by bits


class BundleStore:
    """The weights that a bundle holds, dequantized; reads them from the parts' weight files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.index: dict[str, dict[str, Any]] = json.loads((folder / ENCODINGS).read_text())["weights"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{folder / ENCODINGS}: missing or damaged; convert again") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight.

        Raises:
            BundleError: the bundle holds no such weight.
        """
        if name not in self.index:
            raise BundleError(f"{self.folder}: holds no weight '{name}'")
        return tuple(self.index[name]["shape"])

    def sha256(self, name: str) -> str | None:
        """None: the bytes are the bundle's, not a checkpoint's."""
        return None

    def place(self, name: str) -> Placed:
        """How and where a weight lies in its part's file, with its scales.

        Raises:
            BundleError: the bundle holds no such weight.
        """
        if name not in self.index:
            raise BundleError(f"{self.folder}: holds no weight '{name}'")
        fields = {key: value for key, value in self.index[name].items() if key != "file"}
        shape = tuple(fields["shape"])
        with (self.folder / self.index[name]["file"]).open("rb") as file:
            file.seek(fields["offset"] + fields["row_bytes"] * (shape[0] if shape else 1))
            scale = np.frombuffer(file.read(4 * fields["scale"]), dtype=np.float32)
        return Placed(**{**fields, "shape": shape, "scale": scale})

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32; reads those rows alone."""
        placed = self.place(name)
        shape, bits = placed.shape, placed.bits
        start, stop, _ = (rows or slice(None)).indices(shape[0] if shape else 1)
        with (self.folder / self.index[name]["file"]).open("rb") as file:
            file.seek(placed.offset + placed.row_bytes * start)
            raw = np.frombuffer(bytearray(file.read(placed.row_bytes * (stop - start))), dtype=_DTYPES[bits])
        read_shape = (stop - start, *shape[1:]) if shape else ()
        if bits == 32:
            return torch.from_numpy(raw).reshape(read_shape)
        values = unpack_int4(raw, prod(read_shape)) if bits == 4 else raw
        ints = torch.from_numpy(values.astype(np.float32)).reshape(read_shape)
        if bits == 16:
            return (ints - placed.zero_point) * float(placed.scale[0])
        return ints * torch.from_numpy(placed.scale[start:stop].copy()).reshape(-1, *[1] * (ints.ndim - 1))


def read_encodings(folder: Path) -> Encodings:
    """The encodings of a bundle's values; its weights lie on their grids already."""
    try:
        values = json.loads((folder / ENCODINGS).read_text())["values"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / ENCODINGS}: missing or damaged; convert again") from error
    return Encodings({name: Encoding(**item) for name, item in values.items()})
