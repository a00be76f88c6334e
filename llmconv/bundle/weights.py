"""The weights and encodings that a finished bundle holds."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import torch

from llmconv.bundle.part_file import Placed, read_placed, read_rows
from llmconv.encodings.value import Encoding, Encodings
from llmconv.errors import BundleError
from llmconv.heap import empty

ENCODINGS = "encodings.json"
AT_ONCE = 1 << 22  # numbers of a large weight that are computed from integers at once, by way of others as large


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
        with (self.folder / self.index[name]["file"]).open("rb") as file:
            return read_placed(file, self.index[name])

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32; reads those rows alone."""
        placed = self.place(name)
        with (self.folder / self.index[name]["file"]).open("rb") as file:
            if rows is not None or prod(placed.shape) <= AT_ONCE:
                return read_rows(file, placed, rows)
            found = empty(placed.shape)
            step = max(1, AT_ONCE * placed.rows // prod(placed.shape))
            for start in range(0, placed.rows, step):
                found[start : start + step] = read_rows(file, placed, slice(start, start + step))
            return found


def read_encodings(folder: Path) -> Encodings:
    """The encodings of a bundle's values; its weights lie on their grids already."""
    try:
        values = json.loads((folder / ENCODINGS).read_text())["values"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / ENCODINGS}: missing or damaged; convert again") from error
    return Encodings({name: Encoding(**item) for name, item in values.items()})
