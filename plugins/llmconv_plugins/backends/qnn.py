"""QNN on this machine: one HTP context binary a part, all graphs over shared weights, and twins for the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from llmconv import (
    ONNX_FOLDER,
    Backend,
    BackendError,
    Binary,
    BuildJob,
    BuildResult,
    Bundle,
    Check,
    Chipset,
    TensorSpec,
)
from llmconv_plugins.backends.onnx import OnnxBackend
from llmconv_plugins.qnn.compiler import CompileReport, GraphJob, compile_part
from llmconv_plugins.qnn.context_binary import TensorInfo, read_info

SIZE_MATTERS = 50_000_000  # bytes of weights from which a binary's size is judged
TWIN_LIMIT = 100_000_000  # bytes of weights up to which twins are made by default


@dataclass(frozen=True)
class QnnBackend(Backend):
    """Lowers to ONNX, then compiles each part with the QNN compiler of the onnxruntime-qnn wheel.

    Attributes:
        twins: whether to compile each graph once more by itself, for the HTP simulator, which cannot load binaries
            with shared weights: "auto" for models of at most 100 MB of weights.
        optimization: the compiler's finalization effort, 0 to 3.
    """

    name: ClassVar[str] = "qnn"
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime", "qnn")

    twins: Literal["auto", "always", "never"] = "auto"
    optimization: Literal[0, 1, 2, 3] = 3

    def check(self, chipset: Chipset) -> None:
        """The compiler is there."""
        try:
            version("onnxruntime-qnn")
        except PackageNotFoundError as error:
            raise BackendError(
                "backend 'qnn' needs the QNN compiler: pip install onnxruntime-qnn (or use --backend onnx)"
            ) from error

    def build(self, job: BuildJob) -> BuildResult:
        """Lower and compile."""
        result = OnnxBackend().build(job)
        graphs = list(job.model.graphs.values())
        count = len(graphs[0].parts)
        for i in range(count):
            jobs = [GraphJob(job.folder / ONNX_FOLDER / f"{g.label(i)}.onnx", g.label(i)) for g in graphs]
            self._compile(job, jobs, f"qnn/part_{i + 1}_of_{count}.bin", i, result)
        if self.twins == "always" or (self.twins == "auto" and _weight_bytes(job.folder) <= TWIN_LIMIT):
            for graph in graphs:
                for i in range(count):
                    jobs = [GraphJob(job.folder / ONNX_FOLDER / f"{graph.label(i)}.onnx", graph.label(i))]
                    self._compile(job, jobs, f"qnn/simulator/{graph.label(i)}.bin", i, result)
        result.versions["onnxruntime-qnn"] = version("onnxruntime-qnn")
        return result

    def prove(self, bundle: Bundle) -> list[Check]:
        """Read the shipped binaries back: names, shapes, types, scales and offsets, and size."""
        return [
            check for entry in bundle.manifest["binaries"] if not entry["simulator"] for check in _prove(bundle, entry)
        ]

    def _compile(self, job: BuildJob, jobs: list[GraphJob], file: str, part: int, result: BuildResult) -> None:
        job.progress("compile", Path(file).stem)
        target = job.folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        report: CompileReport = compile_part(
            jobs,
            target,
            soc_model=job.chipset.soc_model,
            htp_arch=job.chipset.htp_arch,
            optimization=self.optimization,
        )
        result.binaries.append(
            Binary(
                file,
                part,
                tuple(j.name for j in jobs),
                simulator="simulator" in target.parts,
                seconds=report.seconds,
                peak_rss=report.peak_rss_bytes,
            )
        )


def _prove(bundle: Bundle, entry: dict[str, Any]) -> list[Check]:
    file = bundle.path(entry["file"])
    expected: dict[str, Any] = {}
    for graph in bundle.graphs.values():
        part = graph.parts[entry["part"]]
        expected |= {f"{part.label} {t.name}": _as_read(t) for t in (*part.inputs, *part.outputs)}
    found = {f"{g.name} {t.name}": t for g in read_info(file).graphs for t in (*g.inputs, *g.outputs)}
    wrong = [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]
    measured = f"{len(found)} tensors equal" if not wrong else f"{len(wrong)} differ, first {wrong[0]}"
    checks = [Check(5, f"{file.name}: graphs and I/O, read back", measured, "equal the manifest", not wrong)]
    weights = bundle.path(f"{ONNX_FOLDER}/{file.stem}.data").stat().st_size
    if weights > SIZE_MATTERS:
        ratio = file.stat().st_size / weights
        checks.append(Check(5, f"{file.name}: size over weight bytes", f"{ratio:.3f}", "≤ 1.10", ratio <= 1.10))
    return checks


def _as_read(spec: TensorSpec) -> TensorInfo:
    """A tensor of the manifest as QNN reports it: offsets are negative zero points."""
    if spec.encoding is None:
        return TensorInfo(spec.name, spec.shape, spec.dtype, None, None, np.dtype(spec.dtype).itemsize * 8)
    encoding = spec.encoding
    return TensorInfo(spec.name, spec.shape, spec.dtype, encoding["scale"], -encoding["zero_point"], encoding["bits"])


def _weight_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in (folder / ONNX_FOLDER).glob("*.data"))
