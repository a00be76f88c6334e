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
from llmconv_plugins.runtimes.joined_heads import with_joined_heads
from llmconv_plugins.runtimes.late_dequantize import with_rows_dequantized, with_weights_first
from llmconv_plugins.runtimes.repeated_roundings import without_repeated_roundings

# Tokens in a run: SmolLM2's products of 128 tokens take twice as long as dequantizing its weights, which as floats take
# 600 MB in place of 200; those of one token take a fifth of it.
DEQUANTIZED_FROM = 64


@dataclass(frozen=True)
class OnnxRuntime(GraphRuntime):
    """Runs the bundle's ONNX files number by number as they say.

    Weights stay floats in memory for graphs that read few tokens in a run; the others dequantize them in each.
    """

    name: ClassVar[str] = "onnxruntime"

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> AbstractContextManager[list[Runner]]:
        """Sessions for every part."""
        return _open(bundle, [bundle.graphs[name] for name in graphs or bundle.graphs])


@contextmanager
def _open(bundle: Bundle, graphs: list[GraphSpec]) -> Iterator[list[Runner]]:
    yield [_runner(bundle, graph) for graph in graphs]


def _runner(bundle: Bundle, graph: GraphSpec) -> Runner:
    floats = graph.ar < DEQUANTIZED_FROM
    sessions = [open_session(bundle.path(part.onnx), floats=floats) for part in graph.parts]
    return PartsRunner(graph, lambda i, inputs: run_session(sessions[i], inputs))


def open_session(file: Path, *, floats: bool) -> Any:
    """ONNX Runtime's session over one ONNX file, which gives every number that the file says.

    Each run dequantizes the rows of the embedding table that it looks up; roundings that repeat another are left out,
    and what heads do alike is one op; no rounding is moved or fused. So the results are bit by bit those of the file
    run op by op.

    Args:
        floats: whether weights are dequantized when the session is made and stay in memory so, and not in each run.

    Raises:
        BackendError: it refuses the file.
    """
    import onnx  # noqa: PLC0415  0.3 s that listing runtimes should not pay
    import onnxruntime as ort  # noqa: PLC0415  likewise

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel  # the first folds constants
    options.graph_optimization_level = level.ORT_ENABLE_BASIC if floats else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # fuses no roundings with ops, folds weights'
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    # threads that wait else take the time of others on their core, such as a simulator's: it doubled that of a run
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # takes more than it needs
    options.log_severity_level = 3
    try:
        model = with_rows_dequantized(onnx.load(str(file), load_external_data=False))
        model = with_joined_heads(without_repeated_roundings(model))
        if not floats:
            model = with_weights_first(model)
        return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
        raise BackendError(f"{file.name}: ONNX Runtime refuses it: {str(error).splitlines()[0]}") from error


def run_session(session: Any, inputs: Arrays) -> Arrays:
    """A session's outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
