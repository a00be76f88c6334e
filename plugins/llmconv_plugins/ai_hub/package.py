"""What AI Hub gets of a part: one zip a graph, an AIMET package or the QDQ ONNX as it is.

A package holds one graph of a part, so that a part of two graphs is uploaded twice, weights included. One model for
both would have to have a symbolic token axis, but the shapes of reshapes, slices and concats are constants of each
graph, and a prompt graph as long as its context has no past at all; and a `.aimet` folder holds one ONNX file only.
The link job joins the two again and keeps their weights once, since names and bytes agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from llmconv import BackendError
from llmconv.backends import BuildJob
from llmconv.bundle import ONNX_FOLDER
from llmconv.files import digest
from llmconv.graph import Graph
from llmconv.work import key_of
from llmconv_plugins.ai_hub.aimet_encodings import aimet_encodings, check_encodings
from llmconv_plugins.ai_hub.client_internals import pb
from llmconv_plugins.ai_hub.float_graph import float_part

PackageForm = Literal["aimet", "qdq"]

FORMAT = 1  # counts up when the same part gives another package
LEVEL = 1  # of compression; higher ones take minutes for little
TO_DLC = "--target_runtime qnn_dlc"
_PIECE = 1 << 22  # bytes that are copied at once


@dataclass(frozen=True)
class Packaging:
    """One form of package.

    Attributes:
        model_type: the service's number for it.
        options: of the compile job, beside the graph's name.
        write: the package, a zip.
    """

    form: PackageForm
    model_type: pb.ModelType.ValueType
    options: str
    write: Callable[[BuildJob, Graph, int, Path], None]

    def key(self, job: BuildJob, graph: Graph, part: int) -> str:
        """Of what a package holds, without writing it: the part's QDQ ONNX holds all its encodings."""
        onnx, data = _lowered(job, graph, part)
        known = job.steps.digests() if job.steps is not None else {}
        weights = known.get(f"{ONNX_FOLDER}/{data.name}") or digest(data)
        return key_of(form=self.form, label=graph.label(part), onnx=digest(onnx), weights=weights, format=FORMAT)

    def compile_options(self, label: str) -> str:
        """Of the job that compiles one graph."""
        return f"{self.options} --qnn_options context_enable_graphs={label}"


def packaging(form: PackageForm) -> Packaging:
    """The writer of a form."""
    if form == "qdq":
        return Packaging(form, pb.MODEL_TYPE_ONNX, TO_DLC, write_qdq_package)
    quantized = f"{TO_DLC} --quantize_full_type w8a16 --quantize_io"  # the encodings lower weights to 4 bits
    return Packaging(form, pb.MODEL_TYPE_AIMET_ONNX, quantized, write_aimet_package)


def write_aimet_package(job: BuildJob, graph: Graph, part: int, target: Path) -> None:
    """Write one part of one graph as `<label>.aimet/` in a zip: float ONNX, float32 weights, AIMET encodings.

    The weights are the integers of `onnx/` times their scales, so that rounding them with the scales alone gives the
    integers back. Memory holds a few rows of them at a time; the bytes depend on the part alone.

    Args:
        job: whose folder holds `onnx/` and `encodings.json`, as the backend `onnx` leaves them.
        part: counts from 0.
        target: written whole or not at all.

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
    _write_zip(target, f"{label}.aimet", members, ZIP_DEFLATED)


def write_qdq_package(job: BuildJob, graph: Graph, part: int, target: Path) -> None:
    """Write one part of one graph as `<label>.onnx/` in a zip: the QDQ ONNX and its packed weights as they are.

    Weights of 4 bits compress no further, so nothing is compressed.

    Args:
        job, part, target: as of `write_aimet_package`.
    """
    members = {file.name: _pieces(file) for file in _lowered(job, graph, part)}
    _write_zip(target, f"{graph.label(part)}.onnx", members, ZIP_STORED)


def _lowered(job: BuildJob, graph: Graph, part: int) -> tuple[Path, Path]:
    folder = job.folder / ONNX_FOLDER
    return folder / f"{graph.label(part)}.onnx", folder / f"part_{part + 1}_of_{len(graph.parts)}.data"


def _write_zip(target: Path, folder: str, members: Mapping[str, Iterable[bytes | memoryview]], method: int) -> None:
    partial = target.with_name(f".{target.name}.partial")
    try:
        with ZipFile(partial, "w", method, compresslevel=LEVEL) as archive:
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
