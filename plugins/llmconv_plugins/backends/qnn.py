"""QNN on this machine: one HTP context binary a part, all graphs over shared weights, and twins for the simulator."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    Graph,
    PartSize,
    Stage,
    TensorSpec,
    code_identity,
    digest,
    key_of,
    memory_at_hand,
    part_sizes,
    widths_of,
)
from llmconv_plugins.backends.onnx import OnnxBackend
from llmconv_plugins.qnn.compiler import CompileReport, GraphJob, compile_part
from llmconv_plugins.qnn.context_binary import TensorInfo, read_info
from llmconv_plugins.qnn.estimates import binary_bytes, compile_memory, compile_seconds
from llmconv_plugins.qnn.queue import Task, compile_all

SIZE_MATTERS = 50_000_000  # bytes of weights from which a binary's size is judged
SIMULATOR = "qnn/simulator/"  # folder of the twins
TOO_LARGE = re.compile(r"needs [\d,]+ KB > [\d,]+ KB")  # QNN's words
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

    def stages(self, parts: Sequence[PartSize]) -> list[Stage]:
        """Each part's compilation, and that of its twins."""
        small = sum(part.weight_bytes for part in parts) <= TWIN_LIMIT
        count = len(parts)
        found = []
        for part in parts:
            name, size = f"compile part {part.number + 1} of {count}", binary_bytes(part)
            found.append(Stage(name, compile_seconds(part), compile_memory(part), size, parallel=True))
        if self.twins == "always" or (self.twins == "auto" and small):
            for i in range(len(parts[0].graphs)):
                for part in parts:
                    alone = replace(part, graphs=part.graphs[i : i + 1])
                    name, size = f"compile {alone.graphs[0].label}", binary_bytes(alone)
                    found.append(Stage(name, compile_seconds(alone), compile_memory(alone), size, parallel=True))
        return found

    def build(self, job: BuildJob) -> BuildResult:
        """Lower, then compile as many parts at once as cores and memory allow."""
        result = OnnxBackend().build(job)
        job.progress("compare", "with what an earlier run compiled")
        binaries = list(self._binaries(job))
        keys = {file: self._key(job, graphs, part.number) for file, graphs, part in binaries}
        kept = {file: job.steps and job.steps.finished(file, key) for file, key in keys.items()}
        wanted = [binary for binary in binaries if not kept[binary[0]]]
        reports = compile_all(
            [self._task(job, *binary, keys[binary[0]]) for binary in wanted],
            jobs=job.jobs or os.cpu_count() or 1,
            memory=memory_at_hand(),
            announce=lambda names: job.progress("compile", ", ".join(names)),
        )
        made = {file: _figures(report) for (file, _, _), report in zip(wanted, reports, strict=True)}
        for file, graphs, part in binaries:
            names, simulator = tuple(graph.label(part.number) for graph in graphs), file.startswith(SIMULATOR)
            figures: Any = made.get(file) or kept[file]
            result.binaries.append(Binary(file, part.number, names, simulator, **figures, kept=file not in made))
        result.versions["onnxruntime-qnn"] = version("onnxruntime-qnn")
        return result

    def prove(self, bundle: Bundle) -> list[Check]:
        """Read the shipped binaries back: names, shapes, types, scales and offsets, and size."""
        return [
            check for entry in bundle.manifest["binaries"] if not entry["simulator"] for check in _prove(bundle, entry)
        ]

    def _binaries(self, job: BuildJob) -> Iterator[tuple[str, list[Graph], PartSize]]:
        """File, graphs and size of every binary: those of the device, then twins."""
        graphs = list(job.model.graphs.values())
        parts = part_sizes(job.model, widths_of(job.model))
        for part in parts:
            yield f"qnn/part_{part.number + 1}_of_{len(parts)}.bin", graphs, part
        if self.twins == "always" or (self.twins == "auto" and _weight_bytes(job.folder) <= TWIN_LIMIT):
            for i, graph in enumerate(graphs):
                for part in parts:
                    alone = replace(part, graphs=part.graphs[i : i + 1])
                    yield f"{SIMULATOR}{graph.label(part.number)}.bin", [graph], alone

    def _key(self, job: BuildJob, graphs: list[Graph], part: int) -> str:
        """Of everything that a binary depends on."""
        folder, data = job.folder / ONNX_FOLDER, f"part_{part + 1}_of_{len(graphs[0].parts)}.data"
        known = job.steps.digests() if job.steps is not None else {}
        return key_of(
            onnx=[digest(folder / f"{graph.label(part)}.onnx") for graph in graphs],
            weights=known.get(f"{ONNX_FOLDER}/{data}") or digest(folder / data),
            chipset=[job.chipset.soc_model, job.chipset.htp_arch],
            optimization=self.optimization,
            versions=[version("onnxruntime"), version("onnxruntime-qnn")],
            code=code_identity(self),
        )

    def _task(self, job: BuildJob, file: str, graphs: list[Graph], part: PartSize, key: str) -> Task:
        labels = [graph.label(part.number) for graph in graphs]
        jobs = [GraphJob(job.folder / ONNX_FOLDER / f"{label}.onnx", label) for label in labels]

        def compile_it(stop: threading.Event) -> CompileReport:
            target = job.folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            chipset = job.chipset
            try:
                report = compile_part(
                    jobs,
                    target,
                    soc_model=chipset.soc_model,
                    htp_arch=chipset.htp_arch,
                    optimization=self.optimization,
                    stop=stop,
                )
            except BackendError as error:
                raise BackendError(f"{error}{_remedy(str(error), graphs)}") from error
            if job.steps is not None:
                job.steps.finish(file, key, [target], _figures(report))
            return report

        return Task(Path(file).stem, compile_memory(part), compile_it)


def _figures(report: CompileReport) -> dict[str, Any]:
    return {"seconds": report.seconds, "peak_rss": report.peak_rss_bytes}


def _remedy(message: str, graphs: list[Graph]) -> str:
    """The recipe's settings that need less, where a part was too large for the device or for this machine."""
    largest = max(graphs, key=lambda graph: graph.ar)
    if TOO_LARGE.search(message):
        ar = f"graphs.{largest.name}.ar = {largest.ar // 2}, or " if largest.ar > 1 else ""
        return f"; set {ar}a higher passes.split_model.parts"
    if "SIGKILL" in message:
        return "; pass --jobs 1, set a higher passes.split_model.parts, or add swap ('llmconv plan' says how much)"
    return ""


def _prove(bundle: Bundle, entry: dict[str, Any]) -> list[Check]:
    file = bundle.path(entry["file"])
    expected: dict[str, Any] = {}
    for graph in bundle.graphs.values():
        part = graph.parts[entry["part"]]
        expected |= {f"{part.label} {t.name}": _as_read(t) for t in (*part.inputs, *part.outputs)}
    graphs = read_info(file).graphs
    found = {f"{g.name} {t.name}": t for g in graphs for t in (*g.inputs, *g.outputs)}
    wrong = [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]
    measured = f"{len(found)} tensors equal" if not wrong else f"{len(wrong)} differ, first {wrong[0]}"
    checks = [Check(5, f"{file.name}: graphs and I/O, read back", measured, "equal the manifest", not wrong)]
    spilled = {g.name: g.spill_fill for g in graphs if g.spill_fill is not None}
    if spilled:
        most = max(spilled, key=lambda name: spilled[name])
        checks.append(
            Check(5, f"{file.name}: spill-fill buffer of {most}, the largest", f"{spilled[most] / 1e6:.2f} MB")
        )
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
