"""The same pipeline over compiled parts, for the QNN provider: one binary a graph and part, as the simulator needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from llmconv import Bundle
from llmconv.backends import Progress
from llmconv.work import Threads
from llmconv_plugins.qnn.compile_task import compile_task
from llmconv_plugins.qnn.context_binary import TensorInfo
from llmconv_plugins.qnn.ep_context import ep_context
from llmconv_plugins.qnn.onnx_file import inspect

SESSION: dict[str, Any] = {
    "log_id": "onnxruntime-genai",
    "session.disable_cpu_ep_fallback": "1",
    "provider_options": [{"qnn": {"backend_type": "htp", "offload_graph_io_quantization": "0"}}],
}


def compile_stages(bundle: Bundle, labels: Sequence[str], folder: Path, compiled: str, progress: Progress) -> None:
    """Compile `folder`/<label>.onnx into its folder `compiled`, each with an ONNX file that loads it.

    Raises:
        BackendError: a part cannot be compiled.
    """
    target = bundle.manifest["target"]
    effort = bundle.manifest["recipe"]["backend"].get("optimization", 3)
    chip = (target["soc_model"], target["htp_arch"])
    tasks = [
        compile_task(
            folder, [f"{label}.onnx"], inspect(folder / f"{label}.onnx").data, f"{compiled}/{label}.bin", *chip, effort
        )
        for label in labels
    ]
    outcomes = Threads().run(tasks, lambda names: progress("compile", ", ".join(names)))
    for label, outcome in zip(labels, outcomes, strict=True):
        (graph,) = outcome.value.graphs
        ins, outs = ([_port(t) for t in side] for side in (graph.inputs, graph.outputs))
        onnx.save(ep_context(label, ins, outs, f"{label}.bin"), folder / compiled / f"{label}.onnx")


def _port(tensor: TensorInfo) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, tensor.dtype, tensor.shape
