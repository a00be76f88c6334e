"""Compiles the graphs of one part to a QNN context binary, in one child process, and proves what came out."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from llmconv import BackendError
from llmconv_plugins.qnn.child import Child, give
from llmconv_plugins.qnn.compile_child import FAILED, JOB, RESULT, STAGE, TRACE, binary_file, dump_folder, graph_file
from llmconv_plugins.qnn.compile_failure import explain
from llmconv_plugins.qnn.compiled_graph import check_no_floats
from llmconv_plugins.qnn.context_binary import BinaryInfo, GraphInfo, TensorInfo, read_info
from llmconv_plugins.qnn.onnx_file import OnnxFile, Ports, inspect
from llmconv_plugins.qnn.rename import rename_graphs
from llmconv_plugins.qnn.stage_times import PROFILE, Stages, read_stages

CHILD = "llmconv_plugins.qnn.compile_child"
LOG = "log.txt"
WORK = ".compiling"  # how the names of working folders end, beside the binary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphJob:
    """A graph to compile.

    Attributes:
        onnx: file with uint16, uint8 and int32 inputs and outputs and fixed shapes, its data files beside it.
        name: the exact name inside the binary, such as prompt_ar32_cl128_1_of_2.
    """

    onnx: Path
    name: str


@dataclass(frozen=True)
class CompileReport:
    """What compiling took and made.

    Attributes:
        peak_rss_bytes: of the child process.
        graphs: read back from the finished binary, in the order of the jobs.
        qnn_version: as the binary has it, such as v2.51.0.260929181845.
        stages: seconds of the compiler's own stages, by graph; empty where it did not tell.
    """

    seconds: float
    peak_rss_bytes: int
    binary_bytes: int
    graphs: tuple[GraphInfo, ...]
    qnn_version: str
    stages: dict[str, Stages] = field(default_factory=dict)


def compile_part(
    jobs: Sequence[GraphJob],
    binary: Path,
    *,
    soc_model: str,
    htp_arch: str,
    optimization: int = 3,
    dump_dir: Path | None = None,
    stop: threading.Event | None = None,
) -> CompileReport:
    """Compile one graph, or several over shared weights, into one context binary.

    Args:
        binary: written when everything is proved; until then its place is untouched.
        soc_model, htp_arch: QNN's numbers of the chipset, such as "43" and "73".
        optimization: the compiler's finalization effort, 0 to 3.
        dump_dir: folder that takes the compiled graphs as JSON, the traces of their ops and the log.
        stop: when set, from another thread, the compiler is killed.

    Raises:
        BackendError: onnxruntime-qnn is missing, QNN refuses a graph or crashes on it, a tensor was compiled to
            floating point, the binary is not what it should be, or `stop` was set. Names the graph.
    """
    files = [inspect(job.onnx) for job in jobs]
    work = binary.with_name(f".{binary.name}.{uuid4().hex[:8]}{WORK}")  # its own: a lost worker may still be at it
    work.mkdir(parents=True)
    try:
        _place(jobs, files, work)
        settings = {"count": len(jobs), "soc_model": soc_model, "htp_arch": htp_arch, "optimization": optimization}
        (work / JOB).write_text(json.dumps(settings))
        started = time.monotonic()
        peak = _run(jobs, files, work, stop)
        seconds = time.monotonic() - started
        info = _prove(jobs, files, work)
        size = (work / binary_file()).stat().st_size
        (work / binary_file()).replace(binary)
        logger.info("compiled %s: %.1f s, %d bytes", binary.name, seconds, size)
        stages = read_stages(work / PROFILE, [job.name for job in jobs])
        return CompileReport(seconds, peak, size, info.graphs, info.build_id, stages)
    finally:
        if dump_dir is not None:
            _keep(jobs, work, dump_dir)
        shutil.rmtree(work, ignore_errors=True)


def _place(jobs: Sequence[GraphJob], files: Sequence[OnnxFile], work: Path) -> None:
    if not jobs:
        raise BackendError("a part needs at least one graph to compile")
    data: dict[str, Path] = {}
    for i, (job, file) in enumerate(zip(jobs, files, strict=True)):
        give(job.onnx, work / graph_file(i))
        for name in file.data:
            source = job.onnx.parent / name
            if not data.setdefault(name, source).samefile(source):
                raise BackendError(f"{job.name}: its weight file {source} is another than {data[name]}")
    for name, source in data.items():
        give(source, work / name)


def _run(jobs: Sequence[GraphJob], files: Sequence[OnnxFile], work: Path, stop: threading.Event | None) -> int:
    """The child's peak memory."""
    with Child(CHILD, [], log=work / LOG, cwd=work) as child:
        child.finish(stop)
        code = child.process.returncode
        stage = (work / STAGE).read_text() if (work / STAGE).is_file() else ""
        i = int(stage or 0)
        if code == FAILED:
            message = json.loads((work / RESULT).read_text())["error"]
            reason = explain(message, work / dump_folder(i) / TRACE, work / LOG, files[i].makes)
            raise BackendError(f"{jobs[i].name}: {reason}")
        if code:
            raise BackendError(f"{jobs[i].name}: the QNN compiler {child.ending()}")
    return int(json.loads((work / RESULT).read_text())["peak_rss_bytes"])


def _prove(jobs: Sequence[GraphJob], files: Sequence[OnnxFile], work: Path) -> BinaryInfo:
    """Check the compiled graphs, name them, and read the result back; its graphs are in the order of the jobs."""
    produced = work / binary_file()
    names = {}
    for i, job in enumerate(jobs):
        dumps = [f for f in (work / dump_folder(i)).glob("*.json") if f.name != TRACE]
        dumps = [f for f in dumps if not f.stem.endswith("_tensor_log")]
        if len(dumps) != 1:
            raise BackendError(f"{job.name}: QNN split the graph into {len(dumps)} pieces instead of 1")
        check_no_floats(dumps[0], job.name)
        names[dumps[0].stem] = job.name
    if not produced.is_file():
        raise BackendError(f"{jobs[0].name}: the QNN compiler wrote no binary")
    before = _by_name(read_info(produced), names, jobs)
    for job, file, graph in zip(jobs, files, before, strict=True):
        _check_ports(job.name, file, graph)
    rename_graphs(produced, names)
    info = read_info(produced)
    after = _by_name(info, [job.name for job in jobs], jobs)
    for old, new in zip(before, after, strict=True):
        if (old.inputs, old.outputs) != (new.inputs, new.outputs):
            raise BackendError(f"{new.name}: renaming changed more than the name")
    return BinaryInfo(after, info.build_id, info.soc_model)


def _by_name(
    info: BinaryInfo, names: Sequence[str] | dict[str, str], jobs: Sequence[GraphJob]
) -> tuple[GraphInfo, ...]:
    graphs = {graph.name: graph for graph in info.graphs}
    if set(graphs) != set(names) or len(info.graphs) != len(jobs):
        raise BackendError(f"{jobs[0].name}: the binary holds the graphs {sorted(graphs)} instead of {sorted(names)}")
    return tuple(graphs[name] for name in names)


def _check_ports(name: str, file: OnnxFile, graph: GraphInfo) -> None:
    for kind, wanted, tensors in (("inputs", file.inputs, graph.inputs), ("outputs", file.outputs, graph.outputs)):
        found = _ports(tensors)
        if found != wanted:
            differing = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))[0]
            raise BackendError(
                f"{name}: the compiled {kind} differ from the ONNX file's, first '{differing}': "
                f"{found.get(differing)} instead of {wanted.get(differing)}"
            )


def _ports(tensors: Sequence[TensorInfo]) -> Ports:
    return {tensor.name: (tensor.shape, tensor.dtype) for tensor in tensors}


def _keep(jobs: Sequence[GraphJob], work: Path, dump_dir: Path) -> None:
    dump_dir.mkdir(parents=True, exist_ok=True)
    for i, job in enumerate(jobs):
        if (work / dump_folder(i)).is_dir():
            shutil.copytree(work / dump_folder(i), dump_dir / job.name, dirs_exist_ok=True)
    if (work / LOG).is_file():
        shutil.copyfile(work / LOG, dump_dir / LOG)
