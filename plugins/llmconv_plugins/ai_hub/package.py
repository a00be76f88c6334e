"""What AI Hub gets of a part: one zip a graph, an AIMET package or the QDQ ONNX as it is.

A package holds one graph of a part, so that a part of two graphs is uploaded twice, weights included. One model for
both would have to have a symbolic token axis, but the shapes of reshapes, slices and concats are constants of each
graph, and a prompt graph as long as its context has no past at all; and a `.aimet` folder holds one ONNX file only.
The link job joins the two again and keeps their weights once, since names and bytes agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import ZIP_DEFLATED, ZipFile

from llmconv import ONNX_FOLDER, BackendError, BuildJob, Graph, code_identity, digest, key_of
from llmconv_plugins.ai_hub.aimet_encodings import aimet_encodings, check_encodings
from llmconv_plugins.ai_hub.float_graph import float_part
from llmconv_plugins.qnn.onnx_file import inspect

Kind = Literal["aimet", "qdq"]

LEVEL = 1  # of compression; floats on a grid take 1.07 bytes at it, and higher ones take minutes for little
_PIECE = 1 << 22  # bytes that are copied at once


@dataclass(frozen=True)
class Package:
    """A zip to upload.

    Attributes:
        label: the graph's name, `token_ar1_cl128_1_of_2`.
        key: of everything that the zip depends on; see `package_key`.
    """

    file: Path
    label: str
    key: str


def package_key(job: BuildJob, graph: Graph, part: int, kind: Kind = "aimet") -> str:
    """The key of a package, without writing it: the part's QDQ ONNX holds all its encodings."""
    folder, data = job.folder / ONNX_FOLDER, f"part_{part + 1}_of_{len(graph.parts)}.data"
    known = job.steps.digests() if job.steps is not None else {}
    return key_of(
        kind=kind,
        label=graph.label(part),
        onnx=digest(folder / f"{graph.label(part)}.onnx"),
        weights=known.get(f"{ONNX_FOLDER}/{data}") or digest(folder / data),
        level=LEVEL,
        code=code_identity(Package),
    )


def write_package(job: BuildJob, graph: Graph, part: int, target: Path) -> Package:
    """Write one part of one graph as `<label>.aimet/` in a zip: float ONNX, float32 weights, AIMET encodings.

    The weights are the integers of `onnx/` times their scales, so that rounding them with the scales alone gives the
    integers back. Memory holds a few rows of them at a time; the bytes depend on the part alone.

    Args:
        job: whose folder holds `onnx/` and `encodings.json`, as the backend `onnx` leaves them.
        part: counts from 0.
        target: named `.aimet.zip`; written whole or not at all.

    Raises:
        BackendError: the model is not quantized, an op has no lowering, or the encodings do not fit the ONNX file.
    """
    label = graph.label(part)
    if job.model.encodings is None:
        raise BackendError(f"{label}: an AIMET package needs encodings; add the pass w4a16 to the recipe")
    made = float_part(job, graph, part)
    encodings = aimet_encodings(made, job.model.encodings.values)
    check_encodings(label, made.model, encodings)
    members: dict[str, Iterable[bytes | memoryview]] = {
        f"{label}.onnx": [made.model.SerializeToString(deterministic=True)],
        f"{label}.encodings": [json.dumps(encodings, indent=1).encode()],
        f"{label}.data": made.weights.blocks(),
    }
    _write_zip(target, f"{label}.aimet", members)
    return Package(target, label, package_key(job, graph, part))


def write_qdq_package(job: BuildJob, graph: Graph, part: int, target: Path) -> Package:
    """Write one part of one graph as `<label>.onnx/` in a zip: the QDQ ONNX and its packed weights as they are.

    Args:
        job, part: as of `write_package`.
        target: named `.onnx.zip`; written whole or not at all.

    Raises:
        BackendError: the ONNX file or its weight file is missing.
    """
    label = graph.label(part)
    file = job.folder / ONNX_FOLDER / f"{label}.onnx"
    sources = {"model.onnx": file, **{name: file.with_name(name) for name in inspect(file).data}}
    _write_zip(target, f"{label}.onnx", {name: _pieces(source) for name, source in sources.items()})
    return Package(target, label, package_key(job, graph, part, "qdq"))


def _write_zip(target: Path, folder: str, members: Mapping[str, Iterable[bytes | memoryview]]) -> None:
    partial = target.with_name(f".{target.name}.partial")
    try:
        with ZipFile(partial, "w", ZIP_DEFLATED, compresslevel=LEVEL) as archive:
            for name, pieces in members.items():
                with archive.open(f"{folder}/{name}", "w", force_zip64=True) as stream:  # dated 1980, whatever the day
                    for piece in pieces:
                        stream.write(piece)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece
