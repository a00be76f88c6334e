"""QDQ ONNX: packed int4 weights, integer inputs and outputs, one weight file a part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx

from llmconv import BackendError
from llmconv.backends import Backend, BuildJob, BuildResult
from llmconv.work import in_processes
from llmconv_plugins.geniex.metadata import write_metadata


@dataclass(frozen=True)
class OnnxBackend(Backend):
    """Writes `onnx/`, checks each file with the ONNX checker, and describes them in metadata.json."""

    name: ClassVar[str] = "onnx"
    several: ClassVar[bool] = True
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def build(self, job: BuildJob) -> BuildResult:
        """Lower, then check."""
        files = [job.folder / part.onnx for graph in job.lower() for part in graph.parts]
        in_processes(_check, files, job.jobs, lambda file: job.progress("check", file.stem))
        write_metadata(job, "onnx", {}, {})
        return BuildResult(versions={"onnx": onnx.__version__})


def _check(file: Path) -> None:
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendError(f"{file.stem}: the ONNX checker refuses it: {reason}") from error
