"""Write a converted model's parts as ONNX files, each part's graphs over one weight file."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from llmconv.errors import BundleError
from llmconv.files import write_json
from llmconv.graph.encodings import Encoding, Encodings
from llmconv.graph.model import Model, name_of
from llmconv.lowering.lower import Lowering, LoweringTable
from llmconv.lowering.part_files import PartFiles
from llmconv.lowering.weight_file import Placed, unpack_int4
from llmconv.processes import in_processes

ONNX_FOLDER = "onnx"
ENCODINGS = "encodings.json"

_DTYPES = {4: np.uint8, 8: np.int8, 16: np.uint16, 32: np.float32}  # of the file, by bits


def write_onnx(
    model: Model,
    bundle: Path,
    lowerings: LoweringTable,
    progress: Callable[[str, str], None] = lambda _stage, _item: None,
    files: PartFiles | None = None,
    jobs: int | None = None,
) -> None:
    """Lower every part of every graph into a bundle's `onnx/`, and what its weight files hold into `encodings.json`.

    Args:
        files: the weight files in `onnx/`, where some weights have been written already.
        jobs: how many processes lower at once at most; None for as many as there are cores.

    Raises:
        LoweringError: a graph holds what has no lowering.
    """
    folder = bundle / ONNX_FOLDER
    graphs = list(model.graphs.values())
    count = len(graphs[0].parts)
    encodings = model.encodings or Encodings()
    index: dict[str, Any] = {}
    with files or PartFiles(folder, model.weights) as part_files:
        opened = [part_files.open(i, count, encodings.weights) for i in range(count)]
        for i, weights in enumerate(opened):
            for node in (n for graph in graphs for n in graph.parts[i].graph.find_nodes(op="get_attr")):
                weights.place(name_of(node))  # here: the processes below only refer to them
            file = f"{ONNX_FOLDER}/{weights.path.name}"
            index |= {name: {"file": file, **item} for name, item in weights.index().items()}

        parts = {graph.label(i): (graph.parts[i], weights) for i, weights in enumerate(opened) for graph in graphs}

        def lower(label: str) -> None:
            lowered = Lowering(parts[label][0], model.encodings, parts[label][1], lowerings).run()
            onnx.save(lowered, folder / f"{label}.onnx")

        in_processes(lower, list(parts), jobs, partial(progress, "lower"))
    values = {name: encoding.to_dict() for name, encoding in encodings.values.items()}
    write_json(bundle / ENCODINGS, {"values": values, "weights": index})


class BundleStore:
    """The weights that a bundle holds, dequantized; reads them from the parts' weight files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.index: dict[str, dict[str, Any]] = json.loads((folder / ENCODINGS).read_text())["weights"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{folder / ENCODINGS}: missing or damaged; convert again") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return tuple(self.index[name]["shape"])

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
