"""A backend: every part as an .ort file, optimized and with its weights inside, for ONNX Runtime on a phone's CPU."""

import time
from dataclasses import dataclass

import onnxruntime

from llmconv import Bundle, hookimpl
from llmconv.backends import Backend, Binary, BuildJob, BuildResult
from llmconv.bundle import Check


@dataclass(frozen=True)
class Ort(Backend):
    """Lowers to ONNX, then has ONNX Runtime save what it makes of each part."""

    name = "ort"
    runtimes = ("onnxruntime",)

    def build(self, job: BuildJob) -> BuildResult:
        result = BuildResult(versions={"onnxruntime": onnxruntime.__version__})
        (job.folder / "ort").mkdir(exist_ok=True)
        for graph in job.lower():
            for number, part in enumerate(graph.parts):
                job.progress("optimize", part.label)
                began, file = time.monotonic(), f"ort/{part.label}.ort"
                options = onnxruntime.SessionOptions()
                options.optimized_model_filepath = str(job.folder / file)
                options.add_session_config_entry("session.save_model_format", "ORT")
                onnxruntime.InferenceSession(job.folder / part.onnx, options, ["CPUExecutionProvider"])
                seconds = time.monotonic() - began
                result.binaries.append(Binary(file, number, (part.label,), simulator=False, seconds=seconds, peak_rss=0))
        return result

    def prove(self, bundle: Bundle) -> list[Check]:
        wrong = []
        for part in (part for graph in bundle.graphs.values() for part in graph.parts):
            session = onnxruntime.InferenceSession(bundle.path(f"ort/{part.label}.ort"), providers=["CPUExecutionProvider"])
            found = {i.name: tuple(i.shape) for i in (*session.get_inputs(), *session.get_outputs())}
            if found != {t.name: t.shape for t in (*part.inputs, *part.outputs)}:
                wrong.append(part.label)
        return [Check("every .ort file loads, and takes and gives what the manifest says", not wrong, ", ".join(wrong))]


@hookimpl
def register_backends() -> list[type[Backend]]:
    return [Ort]
