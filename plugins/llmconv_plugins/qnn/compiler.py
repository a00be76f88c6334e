"""Compile a part's graphs into one HTP context binary, with exact names, nothing in float."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmconv import BackendError
from llmconv_plugins.qnn.child import run_child
from llmconv_plugins.qnn.context_binary import BinaryInfo, read_info
from llmconv_plugins.qnn.rename import rename_graphs


@dataclass(frozen=True)
class GraphJob:
    """One graph to compile: its ONNX file, and the exact name that it gets inside the binary."""

    onnx: Path
    name: str


@dataclass(frozen=True)
class CompileReport:
    """What a compilation took, and what the binary holds as read back from it."""

    seconds: float
    peak_rss_bytes: int
    info: BinaryInfo


def compile_part(
    jobs: Sequence[GraphJob], binary: Path, *, soc_model: str, htp_arch: str, optimization: int = 3
) -> CompileReport:
    """Compile graphs over one weight file; several share their weights in the binary.

    The child works in a folder of its own under constant file names, because the compiler's output depends on the
    path of its input.

    Raises:
        BackendError: the compiler refused or crashed, or the result holds floats or other names.
    """
    what = " and ".join(job.name for job in jobs)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=".compile-", dir=binary.parent) as name:
        folder = Path(name)
        for i, job in enumerate(jobs):
            _provide(job.onnx, folder / f"graph_{i}.onnx")
        for data in {f for job in jobs for f in job.onnx.parent.glob("*.data")}:
            _provide(data, folder / data.name)
        spec = {
            "graphs": [f"graph_{i}.onnx" for i in range(len(jobs))],
            "soc_model": soc_model,
            "htp_arch": htp_arch,
            "optimization": optimization,
        }
        result = run_child("compile_child", spec, folder, what)
        for job, floats in zip(jobs, result["floats"], strict=True):
            if floats:
                raise BackendError(f"{job.name}: tensor '{floats[0]}' of the compiled graph is float; give it an encoding")
        made = folder / result["binary"]
        rename_graphs(made, {old: job.name for old, job in zip(result["names"], jobs, strict=True)})
        info = read_info(made)
        if sorted(g.name for g in info.graphs) != sorted(job.name for job in jobs):
            raise BackendError(f"{what}: the binary holds graphs named {[g.name for g in info.graphs]} after renaming")
        made.replace(binary)
    return CompileReport(time.perf_counter() - start, result["peak_rss"], info)


def _provide(source: Path, target: Path) -> None:
    """A hard link, or a copy across file systems; onnxruntime does not follow symbolic links out of the folder."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
