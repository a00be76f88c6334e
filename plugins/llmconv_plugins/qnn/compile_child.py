"""Compiles the graphs of one part in its working folder; `compiler.compile_part` runs it as a child process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmconv.work import peak_memory
from llmconv_plugins.qnn.inside_child import begin, leave, register
from llmconv_plugins.qnn.stage_times import PROFILE

JOB, STAGE, RESULT, TRACE = "job.json", "stage.txt", "result.json", "qnn_op_trace.json"
FAILED = 3  # exit code: RESULT says why


def graph_file(index: int) -> str:
    """Constant names, because QNN puts a hash of the path into the binary."""
    return f"graph_{index}.onnx"


def dump_folder(index: int) -> str:
    """Where the compiled graph and the trace of its ops go."""
    return f"graph_{index}"


def binary_file() -> str:
    """What ONNX Runtime makes of the first graph's context file name."""
    return "graph_0_ctx_qnn.bin"


def main() -> None:
    """Compile, then write RESULT: peak_rss_bytes, or error."""
    begin()
    job = json.loads(Path(JOB).read_text())
    device, backend = register()
    sessions: list[Any] = []  # kept alive: the last one writes what all of them share
    for i in range(job["count"]):
        Path(STAGE).write_text(str(i))
        try:
            sessions.append(_compile(i, job, device, backend))
        except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
            Path(RESULT).write_text(json.dumps({"error": str(error)}))
            leave(FAILED)
    Path(RESULT).write_text(json.dumps({"peak_rss_bytes": peak_memory()}))
    leave(0)


def _compile(index: int, job: dict[str, Any], device: Any, backend: str) -> Any:
    import onnxruntime as ort  # noqa: PLC0415  the parent reads this module's names

    options = ort.SessionOptions()
    entries = {
        "session.disable_cpu_ep_fallback": "1",
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": f"graph_{index}_ctx.onnx",
    }
    if job["count"] > 1:
        entries["ep.share_ep_contexts"] = "1"
        if index == job["count"] - 1:
            entries["ep.stop_share_ep_contexts"] = "1"
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    Path(dump_folder(index)).mkdir()
    provider = {
        "backend_path": backend,
        "soc_model": job["soc_model"],
        "htp_arch": job["htp_arch"],
        "htp_graph_finalization_optimization_mode": str(job["optimization"]),
        "offload_graph_io_quantization": "0",
        "dump_json_qnn_graph": "1",
        "json_qnn_graph_dir": dump_folder(index),
        "enable_framework_op_trace": "1",
        "framework_op_trace_dir": dump_folder(index),
        "enable_block_quant_weight_optimization": "1",  # else blocks of int4 are computed with in float16
        "profiling_level": "detailed",  # of the compilation; the binary is the same without
        "profiling_file_path": PROFILE,
    }
    options.add_provider_for_devices([device], provider)
    return ort.InferenceSession(graph_file(index), options)


if __name__ == "__main__":
    main()
