"""What ONNX Runtime on this machine gives for each part of a graph, and what it was given: what a device is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from safetensors.numpy import load_file, save_file

from llmconv.backends import BuildJob
from llmconv.bundle import PartSpec, graph_spec
from llmconv.decoding import Arrays, Decoder, reach
from llmconv.graph import Graph
from llmconv.prepare import spread_ids
from llmconv.runtimes import PartsRunner
from llmconv_plugins.runtimes.onnxruntime import open_session, run_session

RUNS = 2  # that a graph makes where it takes a past, so that the last one has some


@dataclass(frozen=True)
class Reference:
    """One graph's last run, on disk.

    Attributes:
        folder: holds one file of inputs and one of outputs a part, as integers.
    """

    folder: Path
    parts: tuple[PartSpec, ...]

    def inputs(self, part: int) -> Arrays:
        """What a part was given, by I/O name."""
        return load_file(self._file(part, "inputs"))

    def outputs(self, part: int) -> Arrays:
        """What it gave."""
        return load_file(self._file(part, "outputs"))

    def keep(self, part: int, inputs: Arrays, outputs: Arrays) -> None:
        """Write a part's run over that of an earlier one."""
        save_file(inputs, self._file(part, "inputs"))
        save_file(outputs, self._file(part, "outputs"))

    def _file(self, part: int, side: str) -> Path:
        return self.folder / f"{self.parts[part].label}.{side}.safetensors"


def window(job: BuildJob, count: int) -> list[int]:
    """Ids that graphs read: the first calibration sample, over again where it is too short.

    A model that was not calibrated reads ids spread over the vocabulary.
    """
    if job.samples:
        return list(islice(cycle(job.samples[0]), count))
    vocabulary = job.model.config.vocabulary if job.model.config is not None else 1
    return spread_ids(vocabulary, range(count))


def run_reference(job: BuildJob, graph: Graph, folder: Path) -> Reference:
    """Run a graph's ONNX files on a window, each part loaded when it is its turn.

    Args:
        job: whose folder holds `onnx/`.
        folder: takes the arrays.

    Raises:
        BackendError: ONNX Runtime refuses a part.
    """
    spec = graph_spec(job.model, graph)
    made = Reference(folder, spec.parts)

    def run_part(i: int, inputs: Arrays) -> Arrays:
        outputs = run_session(open_session(job.folder / spec.parts[i].onnx, floats=False), inputs)
        made.keep(i, inputs, outputs)
        return outputs

    runner = PartsRunner(spec, run_part)
    ids: Sequence[int] = window(job, RUNS * graph.ar)
    Decoder([runner], graph.host_tables()).read(ids[: reach(runner, len(ids))])
    return made
