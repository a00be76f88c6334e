"""What a QNN context binary holds, as QNN's own reader reports it; works for shared binaries too."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv import BackendError
from llmconv_plugins.qnn.child import Child


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a compiled graph.

    Attributes:
        dtype: numpy's name, such as uint16.
        scale, offset: value = (integer + offset) * scale, so that offset is the negative zero point; None for
            tensors without an encoding.
        bits: of the encoding, else of dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    offset: int | None
    bits: int


@dataclass(frozen=True)
class GraphInfo:
    """A compiled graph.

    Attributes:
        spill_fill: bytes of memory for what does not fit the NPU's own; None in binaries that do not say.
    """

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    spill_fill: int | None = None


@dataclass(frozen=True)
class BinaryInfo:
    """A context binary.

    Attributes:
        build_id: version of the QNN that compiled it, such as v2.51.0.260929181845.
        soc_model: QNN's number of the chipset; None in binaries too old to say.
    """

    graphs: tuple[GraphInfo, ...]
    build_id: str
    soc_model: int | None


def read_info(path: Path) -> BinaryInfo:
    """Read a context binary in a child process.

    Raises:
        BackendError: the file is missing, or QNN's reader refuses it or crashes on it.
    """
    if not path.is_file():
        raise BackendError(f"{path}: no such context binary")
    with tempfile.TemporaryDirectory(prefix="llmconv-") as folder:
        log = Path(folder) / "log.txt"
        with Child("llmconv_plugins.qnn.info_child", [str(path.resolve())], log=log, cwd=Path(folder)) as child:
            answer = child.finish()
            if child.process.returncode:
                raise BackendError(f"{path}: the reader of context binaries {child.ending()}")
    content = json.loads(answer)
    if "error" in content:
        raise BackendError(f"{path}: {content['error']}")
    return from_dict(content["info"])


def from_dict(info: dict[str, Any]) -> BinaryInfo:
    """What `qnn_system.read` returns, typed."""
    graphs = tuple(
        GraphInfo(g["name"], _tensors(g["inputs"]), _tensors(g["outputs"]), g["spill_fill"]) for g in info["graphs"]
    )
    return BinaryInfo(graphs, info["build_id"], info["soc_model"])


def _tensors(items: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(**{**item, "shape": tuple(item["shape"])}) for item in items)
