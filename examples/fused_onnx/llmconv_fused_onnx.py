"""A backend: every part once more as ONNX whose ops are fused for ONNX Runtime, over the same weights."""

import time
from dataclasses import dataclass

import onnxruntime as ort

from llmconv import Bundle, hookimpl
from llmconv.backends import Backend, Binary, BuildJob, BuildResult
from llmconv.bundle import Check

CPU = ["CPUExecutionProvider"]


@dataclass(frozen=True)
class FusedOnnx(Backend):
    """Lowers to ONNX, then has ONNX Runtime save what it makes of each part."""

    name = "fused_onnx"
    runtimes = ("onnxruntime",)

    def build(self, job: BuildJob) -> BuildResult:
        result = BuildResult(versions={"onnxruntime": ort.__version__})
        for number, part in [(i, part) for graph in job.lower() for i, part in enumerate(graph.parts)]:
            job.progress("fuse", part.label)
            began, file = time.monotonic(), f"onnx/{part.label}.fused.onnx"  # beside the weights that it names
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # no layout of this CPU
            options.optimized_model_filepath = str(job.folder / file)
            ort.InferenceSession(job.folder / part.onnx, options, CPU)
            result.binaries.append(Binary(file, number, (part.label,), False, time.monotonic() - began, peak_rss=0))
        return result

    def prove(self, bundle: Bundle) -> list[Check]:
        wrong = []
        for part in [part for graph in bundle.graphs.values() for part in graph.parts]:
            session = ort.InferenceSession(bundle.path(f"onnx/{part.label}.fused.onnx"), providers=CPU)
            found = {t.name: tuple(t.shape) for t in (*session.get_inputs(), *session.get_outputs())}
            if found != {t.name: t.shape for t in (*part.inputs, *part.outputs)}:
                wrong.append(part.label)
        return [Check(5, "fused files: inputs and outputs", ", ".join(wrong) or "the manifest's", passed=not wrong)]


@hookimpl
def register_backends() -> list[type[Backend]]:
    return [FusedOnnx]
