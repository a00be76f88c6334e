"""Child process: compile ONNX files into one HTP context binary. Run by `compiler.py` in a folder made for it."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

from llmconv_plugins.qnn.child import JOB, RESULT

PROVIDER = "QNNExecutionProvider"


def register() -> Any:
    """Register the QNN provider with onnxruntime, once a process; gives its device."""
    import onnxruntime as ort  # noqa: PLC0415  only this process may load it
    import onnxruntime_qnn as qnn  # noqa: PLC0415

    ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
    return next(d for d in ort.get_ep_devices() if d.ep_name == PROVIDER)


def provider_options() -> dict[str, str]:
    """Options that every session needs, to compile or to run."""
    import onnxruntime_qnn as qnn  # noqa: PLC0415  only this process may load it

    return {"backend_path": qnn.get_qnn_htp_path(), "offload_graph_io_quantization": "0"}  # integers go in and out


def main() -> None:
    job = json.loads(Path(JOB).read_text())
    try:
        result = _compile(job)
    except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
        result = {"error": reason(str(error))}
    result["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(RESULT).write_text(json.dumps(result))


def _compile(job: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime as ort  # noqa: PLC0415  only this process may load it

    device = register()
    sessions, names, floats = [], [], []
    for i, file in enumerate(job["graphs"]):
        options = ort.SessionOptions()
        options.add_provider_for_devices(
            [device],
            {
                **provider_options(),
                "htp_arch": job["htp_arch"],
                "soc_model": job["soc_model"],
                "htp_graph_finalization_optimization_mode": str(job["optimization"]),
                "dump_json_qnn_graph": "1",
                "json_qnn_graph_dir": ".",
            },
        )
        entries = {
            "session.disable_cpu_ep_fallback": "1",
            "ep.context_enable": "1",
            "ep.context_file_path": f"{Path(file).stem}_ctx.onnx",
            "ep.context_embed_mode": "0",
        }
        if len(job["graphs"]) > 1:
            entries["ep.share_ep_contexts"] = "1"
        if len(job["graphs"]) > 1 and i == len(job["graphs"]) - 1:
            entries["ep.stop_share_ep_contexts"] = "1"
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        before = _dumps()
        try:
            sessions.append(ort.InferenceSession(file, options))
        except Exception as error:
            return {"error": reason(str(error)), "graph": i}
        (dump,) = _dumps() - before
        names.append(dump.stem)
        floats.append(_floats(dump))
    return {"names": names, "floats": floats, "binary": f"{Path(job['graphs'][0]).stem}_ctx_qnn.bin"}


def _dumps() -> set[Path]:
    """The compiler's own dumps of compiled graphs, each named after its graph."""
    return {p for p in Path().glob(f"{PROVIDER}*.json") if not p.stem.endswith("_tensor_log")}


def _floats(dump: Path) -> list[str]:
    """Tensors of a compiled graph that hold floats: data types 0x216 and 0x232."""
    tensors = json.loads(dump.read_text())["graph"]["tensors"]
    return [name for name, tensor in tensors.items() if tensor["data_type"] in (0x216, 0x232)]


def reason(message: str) -> str:
    """One line of onnxruntime's message."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"


if __name__ == "__main__":
    main()
