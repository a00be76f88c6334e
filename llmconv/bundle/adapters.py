"""A bundle's adapters on disk: one raw file of float32 an input, as Genie reads them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmconv.bundle.bundle import Bundle
from llmconv.errors import BundleError

ADAPTERS = "adapters"  # folder in a bundle, of one folder each
SUFFIX = ".raw"


def folder_of(adapter: str) -> str:
    """An adapter's folder, relative to the bundle."""
    return f"{ADAPTERS}/{adapter}"


def write_adapters(folder: Path, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write what the graphs' inputs are filled with; adapters that a run before has left there are gone.

    Args:
        folder: of the bundle.
        tables: by adapter, by the inputs' names.
    """
    shutil.rmtree(folder / ADAPTERS, ignore_errors=True)
    for adapter, table in tables.items():
        (folder / folder_of(adapter)).mkdir(parents=True)
        for name, values in table.items():
            file = folder / folder_of(adapter) / f"{name}{SUFFIX}"
            file.write_bytes(values.contiguous().numpy().astype("<f4").tobytes())


def adapter_table(bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    """What the inputs of the adapter that is switched on are filled with, by name; nothing where none is.

    Raises:
        BundleError: a file is missing or damaged.
    """
    if bundle.adapter is None:
        return {}
    parts = (part for graph in bundle.graphs.values() for part in graph.parts)
    shapes = {tensor.name: tensor.shape for part in parts for tensor in part.inputs if tensor.kind == "lora"}
    found = {}
    for name, shape in shapes.items():
        path = bundle.path(f"{folder_of(bundle.adapter)}/{name}{SUFFIX}")
        values = np.frombuffer(path.read_bytes(), dtype="<f4") if path.stat().st_size % 4 == 0 else np.empty(0)
        if values.size != np.prod(shape):
            raise BundleError(f"{path}: damaged; convert again")
        found[name] = values.reshape(shape).astype(np.float32)
    return found


def refuse_adapters(bundle: Bundle, reader: str) -> None:
    """For a form whose reader leaves the inputs of adapters unfilled.

    Raises:
        BundleError: the bundle has some.
    """
    if bundle.adapters:
        raise BundleError(f"{bundle.folder}: {reader} fills no adapters' inputs; convert with the adapter merged")
