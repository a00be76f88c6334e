"""What is uploaded of one part of one graph, in the forms that a recipe may choose."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qai_hub import public_api_pb2 as pb

from llmconv import ONNX_FOLDER, BuildJob, Graph, digest, key_of

PackageForm = Literal["qdq"]
TO_DLC = "--target_runtime qnn_dlc"


@dataclass(frozen=True)
class Packaging:
    """One form of package.

    Attributes:
        model_type: the service's number for it.
        options: of the compile job, beside the graph's name.
        key: of the content, without writing it.
        write: the package, a zip.
    """

    model_type: pb.ModelType.ValueType
    options: str
    key: Callable[[BuildJob, Graph, int], str]
    write: Callable[[BuildJob, Graph, int, Path], object]


def packaging(form: PackageForm) -> Packaging:
    """The writer of a form."""
    return {"qdq": Packaging(pb.MODEL_TYPE_ONNX, TO_DLC, qdq_key, write_qdq_package)}[form]


def compile_options(form: Packaging, label: str) -> str:
    """Of the job that compiles one graph."""
    return f"{form.options} --qnn_options context_enable_graphs={label}"


def qdq_key(job: BuildJob, graph: Graph, part: int) -> str:
    """Of the lowered file and its weights."""
    onnx, data = _lowered(job, graph, part)
    known = job.steps.digests() if job.steps is not None else {}
    return key_of(onnx=digest(onnx), weights=known.get(f"{ONNX_FOLDER}/{data.name}") or digest(data))


def write_qdq_package(job: BuildJob, graph: Graph, part: int, target: Path) -> None:
    """The lowered file and its weights, as they are: weights of 4 bits compress no further."""
    files = _lowered(job, graph, part)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, f"{graph.label(part)}/{file.name}")


def _lowered(job: BuildJob, graph: Graph, part: int) -> tuple[Path, Path]:
    folder = job.folder / ONNX_FOLDER
    return folder / f"{graph.label(part)}.onnx", folder / f"part_{part + 1}_of_{len(graph.parts)}.data"
