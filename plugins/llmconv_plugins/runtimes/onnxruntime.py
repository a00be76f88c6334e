"""ONNX Runtime on the CPU: the lowering's oracle, op by op as the file says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from llmconv import Arrays, BackendError, Bundle, GraphRuntime, GraphSpec, PartsRunner, Runner


@dataclass(frozen=True)
class OnnxRuntime(GraphRuntime):
    """Runs the bundle's ONNX files without graph optimizations, which would move roundings."""

    name: ClassVar[str] = "onnxruntime"

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> AbstractContextManager[list[Runner]]:
        """Sessions for every part."""
        return _open(bundle, [bundle.graphs[name] for name in graphs or bundle.graphs])


@contextmanager
def _open(bundle: Bundle, graphs: list[GraphSpec]) -> Iterator[list[Runner]]:
    yield [_runner(bundle, graph) for graph in graphs]


def _runner(bundle: Bundle, graph: GraphSpec) -> Runner:
    import onnxruntime as ort  # noqa: PLC0415  0.3 s that listing runtimes should not pay

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    sessions: list[Any] = []
    for part in graph.parts:
        try:
            sessions.append(ort.InferenceSession(str(bundle.path(part.onnx)), options, ["CPUExecutionProvider"]))
        except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
            raise BackendError(f"{part.onnx}: ONNX Runtime refuses it: {str(error).splitlines()[0]}") from error

    def run_part(i: int, inputs: Arrays) -> Arrays:
        names = [o.name for o in sessions[i].get_outputs()]
        return dict(zip(names, sessions[i].run(names, inputs), strict=True))

    return PartsRunner(graph, run_part)
