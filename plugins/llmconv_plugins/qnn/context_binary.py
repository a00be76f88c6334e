"""Read the graphs, inputs and outputs of a context binary, also of one that this machine cannot run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv_plugins.qnn.child import run_child


@dataclass(frozen=True)
class TensorInfo:
    """One input or output; `zero_point` in the unsigned convention, None with `scale` where it is not quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None


@dataclass(frozen=True)
class GraphInfo:
    """One graph of a binary."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class BinaryInfo:
    """What a binary says of itself."""

    build: str
    soc_model: int
    graphs: tuple[GraphInfo, ...]


def read_info(binary: Path) -> BinaryInfo:
    """Read a binary through libQnnSystem, in a child process.

    Raises:
        BackendError: it is no context binary, or the library is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="llmconv-") as folder:
        found = run_child("info_child", {"binary": str(binary.absolute())}, Path(folder), str(binary))
    graphs = tuple(GraphInfo(g["name"], _tensors(g["inputs"]), _tensors(g["outputs"])) for g in found["graphs"])
    return BinaryInfo(found["build"], found["soc_model"], graphs)


def _tensors(items: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(**{**item, "shape": tuple(item["shape"])}) for item in items)
