"""ONNX Runtime on the CPU: the lowering's oracle, op by op as the file says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llmconv import BackendError, Bundle
from llmconv.bundle import GraphSpec
from llmconv.decoding import Arrays, Runner
from llmconv.runtimes import GraphRuntime, PartsRunner


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
    sessions = [open_session(bundle.path(part.onnx)) for part in graph.parts]
    return PartsRunner(graph, lambda i, inputs: run_session(sessions[i], inputs))


def open_session(file: Path) -> Any:
    """ONNX Runtime's session over one ONNX file, op by op as the file says.

    Raises:
        BackendError: it refuses the file.
    """
    import onnxruntime as ort  # noqa: PLC0415  0.3 s that listing runtimes should not pay

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
        raise BackendError(f"{file.name}: ONNX Runtime refuses it: {str(error).splitlines()[0]}") from error


def run_session(session: Any, inputs: Arrays) -> Arrays:
    """A session's outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
