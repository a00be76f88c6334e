"""Which binaries a bundle holds: one a part for the device, and unshared twins that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from llmconv.backends import BuildJob
from llmconv.bundle import ONNX_FOLDER
from llmconv.graph import Graph, PartSize, part_sizes, widths_of

SIMULATOR = "qnn/simulator/"  # folder of the twins
TWIN_LIMIT = 100_000_000  # bytes of weights up to which twins are made by default

Twins = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class PlannedBinary:
    """A binary to build.

    Attributes:
        file: relative to the bundle.
        graphs: those inside it.
        size: of the part, these graphs alone counted.
    """

    file: str
    graphs: list[Graph]
    size: PartSize

    @property
    def part(self) -> int:
        """Counts from 0."""
        return self.size.number

    @property
    def labels(self) -> tuple[str, ...]:
        """The graphs' names inside it."""
        return tuple(graph.label(self.part) for graph in self.graphs)

    @property
    def simulator(self) -> bool:
        """Whether it is a twin."""
        return self.file.startswith(SIMULATOR)


def planned_binaries(job: BuildJob, twins: Twins) -> Iterator[PlannedBinary]:
    """Every binary: those of the device, then twins. The ONNX files are there."""
    graphs = list(job.model.graphs.values())
    parts = part_sizes(job.model, widths_of(job.model))
    for part in parts:
        yield PlannedBinary(f"qnn/part_{part.number + 1}_of_{len(parts)}.bin", graphs, part)
    weights = sum(f.stat().st_size for f in (job.folder / ONNX_FOLDER).glob("*.data"))
    if twins == "always" or (twins == "auto" and weights <= TWIN_LIMIT):
        for i, graph in enumerate(graphs):
            for part in parts:
                alone = replace(part, graphs=part.graphs[i : i + 1])
                yield PlannedBinary(f"{SIMULATOR}{graph.label(part.number)}.bin", [graph], alone)
