"""QNN on this machine: one HTP context binary a part, all graphs over shared weights, and twins for the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Literal

from llmconv import BackendError, Bundle
from llmconv.backends import Backend, Binary, BuildJob, BuildResult, Limit, Stage
from llmconv.bundle import ONNX_FOLDER, Check
from llmconv.files import digest
from llmconv.graph import PartSize
from llmconv.target import Chipset
from llmconv.work import Outcome, Task, code_identity, give_back_memory, key_of
from llmconv_plugins.backends.onnx_backend import OnnxBackend
from llmconv_plugins.genie.genie_files import prove_genie_files, write_genie_files, write_own_genie_files
from llmconv_plugins.genie.on_a_phone import run_on_a_phone
from llmconv_plugins.qnn.compile_task import Largest, compile_task, sweep
from llmconv_plugins.qnn.compiler import CompileReport
from llmconv_plugins.qnn.context_binary import read_info
from llmconv_plugins.qnn.estimates import binary_bytes, compile_memory, compile_seconds
from llmconv_plugins.qnn.layout import (
    PlannedBinary,
    Twins,
    device_file,
    folder_of,
    planned_binaries,
    twin_file,
    twins_of,
)
from llmconv_plugins.qnn.limits import htp_limits
from llmconv_plugins.qnn.qairt import needs, order_warning
from llmconv_plugins.qnn.read_back import prove_binaries


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
    several: ClassVar[bool] = True

    twins: Twins = "auto"
    optimization: Literal[0, 1, 2, 3] = 3

    def check(self, chipset: Chipset) -> None:
        """The compiler is there."""
        try:
            version("onnxruntime-qnn")
        except PackageNotFoundError as error:
            raise BackendError(
                "backend 'qnn' needs the QNN compiler: pip install onnxruntime-qnn (or use --backend onnx)"
            ) from error

    def limits(self, parts: Sequence[PartSize], chipset: Chipset) -> list[Limit]:
        """Those of the chipset's NPU."""
        return htp_limits(parts, chipset)

    def cautions(self, parts: Sequence[PartSize], chipset: Chipset) -> list[str]:
        """What Genie does with many parts."""
        return order_warning(len(parts))

    def stages(self, parts: Sequence[PartSize]) -> list[Stage]:
        """Each part's compilation, and that of its twins."""
        count, alone = len(parts), twins_of(parts, self.twins)
        found = [(f"compile part {p.number + 1} of {count}", p, device_file(p, count)) for p in parts]
        found += [(f"compile {twin.graphs[0].label}", twin, twin_file(twin)) for twin in alone]
        return [
            Stage(name, compile_seconds(p), compile_memory(p), binary_bytes(p), parallel=True, makes=file)
            for name, p, file in found
        ]

    def build(self, job: BuildJob) -> BuildResult:
        """Lower, then compile as many parts at once as cores and memory allow."""
        result = OnnxBackend().build(job)
        job.progress("compare", "with what an earlier run compiled")
        binaries = list(planned_binaries(job, self.twins))
        keys = {binary.file: self._key(job, binary) for binary in binaries}
        done = {file: job.steps and job.steps.finished(file, key) for file, key in keys.items()}
        wanted = [binary for binary in binaries if not done[binary.file]]
        give_back_memory()
        made = self._compile(job, wanted, keys)
        for b in binaries:
            figures: Any = made.get(b.file) or done[b.file]
            made_now = {**figures, "kept": b.file not in made, "targets": b.targets}
            result.binaries.append(Binary(b.file, b.part, b.labels, b.simulator, **made_now))
        result.versions["onnxruntime-qnn"] = version("onnxruntime-qnn")
        for_device = _for_device(binaries, job.chipset)
        result.needs = needs(read_info(job.folder / for_device[0]).build_id, len(for_device))
        result.report["genie"] = write_genie_files(job, for_device)
        for chipset in job.further:
            result.folders[chipset.model] = folder_of(job, chipset)
            write_own_genie_files(job, chipset, _for_device(binaries, chipset), folder_of(job, chipset))
        result.phone = run_on_a_phone(job.folder, for_device)
        job.progress("genie", result.report["genie"])
        return result

    def prove(self, bundle: Bundle) -> list[Check]:
        """Read the shipped binaries back: names, shapes, types, scales and offsets, and size; and Genie's files."""
        each = [bundle.for_target(target["model"]) for target in bundle.targets]
        return [check for seen in each for check in (*prove_binaries(seen), *prove_genie_files(seen))]

    def _key(self, job: BuildJob, binary: PlannedBinary) -> str:
        """Of everything that a binary depends on."""
        folder, data = job.folder / ONNX_FOLDER, _data(binary)
        known = job.steps.digests() if job.steps is not None else {}
        chipset = _chipset(job, binary)
        return key_of(
            onnx=[digest(folder / f"{label}.onnx") for label in binary.labels],
            weights=known.get(data) or digest(job.folder / data),
            chipset=[chipset.soc_model, chipset.htp_arch],
            optimization=self.optimization,
            versions=[version("onnxruntime"), version("onnxruntime-qnn")],
            code=code_identity(self),
        )

    def _compile(
        self, job: BuildJob, binaries: Sequence[PlannedBinary], keys: Mapping[str, str]
    ) -> dict[str, dict[str, Any]]:
        """Figures by file."""
        tasks = {binary.file: self._task(job, binary) for binary in binaries}
        files = {id(task): file for file, task in tasks.items()}

        def done(task: Task, outcome: Outcome) -> None:
            file = files[id(task)]
            if job.steps is not None:
                job.steps.finish(file, keys[file], [job.folder / file], _figures(outcome.value))

        outcomes = job.workers.run(list(tasks.values()), lambda names: job.progress("compile", ", ".join(names)), done)
        sweep(job.folder)
        return {file: _figures(outcome.value) for file, outcome in zip(tasks, outcomes, strict=True)}

    def _task(self, job: BuildJob, binary: PlannedBinary) -> Task:
        largest, chipset = max(binary.graphs, key=lambda graph: graph.ar), _chipset(job, binary)
        return compile_task(
            job.folder,
            [f"{ONNX_FOLDER}/{label}.onnx" for label in binary.labels],
            [_data(binary)],
            binary.file,
            chipset.soc_model,
            chipset.htp_arch,
            self.optimization,
            compile_memory(binary.size),
            Largest(largest.name, largest.ar),
        )


def _for_device(binaries: Sequence[PlannedBinary], chipset: Chipset) -> list[str]:
    return [b.file for b in binaries if not b.simulator and (not b.targets or chipset.model in b.targets)]


def _data(binary: PlannedBinary) -> str:
    """The weight file of its part."""
    return f"{ONNX_FOLDER}/part_{binary.part + 1}_of_{len(binary.graphs[0].parts)}.data"


def _chipset(job: BuildJob, binary: PlannedBinary) -> Chipset:
    """The first that it is for."""
    return next(chipset for chipset in job.chipsets if not binary.targets or chipset.model in binary.targets)


def _figures(report: CompileReport) -> dict[str, Any]:
    return {"seconds": report.seconds, "peak_rss": report.peak_rss_bytes, "stages": report.stages}
