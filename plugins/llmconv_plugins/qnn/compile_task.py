"""The compilation of a part as a task: files and options in, a binary and its figures out."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from llmconv import BackendError
from llmconv.work import Outcome, Task
from llmconv_plugins.qnn.compiler import WORK, GraphJob, compile_part

TOO_LARGE = re.compile(r"needs [\d,]+ KB > [\d,]+ KB")  # QNN's words


@dataclass(frozen=True)
class Largest:
    """The graph of a part that needs the most: its name in the recipe, and its length."""

    name: str
    ar: int


def compile_task(
    folder: Path,
    graphs: Sequence[str],
    data: Sequence[str],
    binary: str,
    soc_model: str,
    htp_arch: str,
    optimization: int,
    memory: int = 0,
    largest: Largest | None = None,
) -> Task:
    """A task whose outcome is a `CompileReport`.

    Args:
        folder: holds all files; their names are relative to it.
        graphs: ONNX files, each named as its graph is to be.
        data: the weight files beside them.
        memory: estimated peak, bytes.
        largest: for what to do where the part is too large.
    """
    call = partial(_compile, tuple(graphs), binary, soc_model, htp_arch, optimization, largest)
    return Task(PurePosixPath(binary).stem, memory, call, folder, (*graphs, *data), (binary,))


def sweep(folder: Path) -> None:
    """Remove what compilations have left that were killed, once none of a folder's runs any more."""
    for left in folder.rglob(f".*{WORK}"):
        shutil.rmtree(left, ignore_errors=True)


def _compile(
    graphs: Sequence[str],
    binary: str,
    soc_model: str,
    htp_arch: str,
    optimization: int,
    largest: Largest | None,
    folder: Path,
    stop: threading.Event,
) -> Outcome:
    jobs = [GraphJob(folder / graph, PurePosixPath(graph).stem) for graph in graphs]
    made = folder / binary
    made.parent.mkdir(parents=True, exist_ok=True)
    try:
        report = compile_part(jobs, made, soc_model=soc_model, htp_arch=htp_arch, optimization=optimization, stop=stop)
    except BackendError as error:
        raise BackendError(f"{error}{_remedy(str(error), largest)}") from error
    return Outcome(report, report.peak_rss_bytes)


def _remedy(message: str, largest: Largest | None) -> str:
    """The recipe's settings that need less, where a part was too large for the device or for this machine."""
    if largest is not None and TOO_LARGE.search(message):
        ar = f"graphs.{largest.name}.ar = {largest.ar // 2}, or " if largest.ar > 1 else ""
        return f"; set {ar}a higher passes.split_model.parts"
    if "SIGKILL" in message:
        return "; pass --jobs 1, set a higher passes.split_model.parts, or add swap ('llmconv plan' says how much)"
    return ""
