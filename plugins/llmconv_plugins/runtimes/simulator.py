"""The HTP simulator: runs the unshared twins of a bundle's binaries, in a child process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar

from llmconv import BackendError, Bundle
from llmconv.bundle import GraphSpec
from llmconv.decoding import Arrays, Runner
from llmconv.runtimes import GraphRuntime, PartsRunner
from llmconv_plugins.qnn.simulator import Simulator


@dataclass(frozen=True)
class QnnSimulator(GraphRuntime):
    """Runs what the phone's NPU would, on this machine; its speed says nothing about the phone's."""

    name: ClassVar[str] = "qnn"

    def lacks(self, bundle: Bundle) -> str | None:
        """Unshared twins, where there are none."""
        return None if bundle.twins else "twins for the simulator (backend.twins)"

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> AbstractContextManager[list[Runner]]:
        """One child process that holds every part."""
        return _open(bundle, [bundle.graphs[name] for name in graphs or bundle.graphs])


@contextmanager
def _open(bundle: Bundle, graphs: list[GraphSpec]) -> Iterator[list[Runner]]:
    twins = bundle.twins
    labels = [part.label for graph in graphs for part in graph.parts]
    missing = [label for label in labels if label not in twins]
    if missing:
        raise BackendError(
            f"{bundle.folder}: no simulator twin of {missing[0]}; convert with --set backend.twins=always"
        )
    with Simulator({label: bundle.path(twins[label]) for label in labels}) as simulator:
        yield [_runner(simulator, graph) for graph in graphs]


def _runner(simulator: Simulator, graph: GraphSpec) -> Runner:
    def run_part(i: int, inputs: Arrays) -> Arrays:
        outputs: Arrays = simulator.run(graph.parts[i].label, inputs)
        return outputs

    return PartsRunner(graph, run_part)
