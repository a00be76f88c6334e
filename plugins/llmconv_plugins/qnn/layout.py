"""Which binaries a bundle holds: one a part for the device, and unshared twins that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmconv.backends import BuildJob
from llmconv.graph import Graph, PartSize, part_sizes, widths_of
from llmconv.target import Chipset

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
        targets: part numbers of the chipsets that it is for, where the bundle is for several.
    """

    file: str
    graphs: list[Graph]
    size: PartSize
    targets: tuple[str, ...] = ()

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
    """Every binary: those of each device, then twins.

    Several chipsets have a folder each. Those of one generation share their twins; of the first they lie where one
    chipset's do.
    """
    graphs = {graph.name: graph for graph in job.model.graphs.values()}
    parts = part_sizes(job.model, widths_of(job.model))
    generations: dict[str, list[str]] = {}
    for chipset in job.chipsets:
        generations.setdefault(chipset.htp_arch, []).append(chipset.model)
        for part in parts:
            file = device_file(part, len(parts), folder_of(job, chipset))
            yield PlannedBinary(file, list(graphs.values()), part, (chipset.model,) if job.further else ())
    for arch, models in generations.items():
        folder = SIMULATOR if arch == job.chipset.htp_arch else f"{SIMULATOR}v{arch}/"
        for alone in twins_of(parts, twins):
            graph = graphs[alone.graphs[0].graph]
            yield PlannedBinary(twin_file(alone, folder), [graph], alone, tuple(models) if job.further else ())


def device_file(part: PartSize, count: int, folder: str = "qnn") -> str:
    """The device's binary of a part of so many."""
    return f"{folder}/part_{part.number + 1}_of_{count}.bin"


def twin_file(alone: PartSize, folder: str = SIMULATOR) -> str:
    """The simulator's binary of one graph of a part."""
    return f"{folder}{alone.graphs[0].label}.bin"


def twins_of(parts: Sequence[PartSize], twins: Twins) -> list[PartSize]:
    """The parts that have twins, each with one graph alone."""
    small = sum(part.weight_bytes for part in parts) <= TWIN_LIMIT
    if twins == "never" or (twins == "auto" and not small):
        return []
    count = range(len(parts[0].graphs))
    return [replace(part, graphs=part.graphs[i : i + 1]) for i in count for part in parts]


def folder_of(job: BuildJob, chipset: Chipset) -> str:
    """Of a chipset's binaries, and of its own files where the bundle is for several."""
    return f"qnn/{chipset.model}" if job.further else "qnn"
