"""QNN on this machine: one HTP context binary a part, all graphs over shared weights, and twins for the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar, Literal

from llmconv import Backend, BackendError, Binary, BuildJob, BuildResult, Chipset
from llmconv.onnx_parts import FOLDER
from llmconv_plugins.backends.onnx import OnnxBackend
from llmconv_plugins.qnn.compiler import CompileReport, GraphJob, compile_part

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
            jobs = [GraphJob(job.folder / FOLDER / f"{g.label(i)}.onnx", g.label(i)) for g in graphs]
            self._compile(job, jobs, f"qnn/part_{i + 1}_of_{count}.bin", i, result)
        if self.twins == "always" or (self.twins == "auto" and _weight_bytes(job.folder) <= TWIN_LIMIT):
            for graph in graphs:
                for i in range(count):
                    jobs = [GraphJob(job.folder / FOLDER / f"{graph.label(i)}.onnx", graph.label(i))]
                    self._compile(job, jobs, f"qnn/simulator/{graph.label(i)}.bin", i, result)
        result.versions["onnxruntime-qnn"] = version("onnxruntime-qnn")
        return result

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


def _weight_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in (folder / FOLDER).glob("*.data"))
