"""The same pipeline over compiled parts, for the QNN provider: one binary a graph and part, as the simulator needs."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from llmconv import Bundle
from llmconv.backends import Progress
from llmconv.work import memory_at_hand
from llmconv_plugins.qnn.compiler import CompileReport, GraphJob, compile_part
from llmconv_plugins.qnn.context_binary import TensorInfo
from llmconv_plugins.qnn.ep_context import ep_context
from llmconv_plugins.qnn.queue import Task, compile_all

SESSION: dict[str, Any] = {
    "log_id": "onnxruntime-genai",
    "session.disable_cpu_ep_fallback": "1",
    "provider_options": [{"qnn": {"backend_type": "htp", "offload_graph_io_quantization": "0"}}],
}


def has_twins(bundle: Bundle) -> bool:
    """Whether the bundle holds binaries for the simulator."""
    return any(b["simulator"] for b in bundle.manifest["binaries"])


def compile_stages(bundle: Bundle, labels: Sequence[str], source: Path, folder: Path, progress: Progress) -> None:
    """Compile `source`/<label>.onnx into `folder`, each with an ONNX file that loads it.

    Raises:
        BackendError: a part cannot be compiled.
    """
    target = bundle.manifest["target"]
    effort = bundle.manifest["recipe"]["backend"].get("optimization", 3)

    def task(label: str) -> Task:
        def compile_it(stop: threading.Event) -> CompileReport:
            return compile_part(
                [GraphJob(source / f"{label}.onnx", label)],
                folder / f"{label}.bin",
                soc_model=target["soc_model"],
                htp_arch=target["htp_arch"],
                optimization=effort,
                stop=stop,
            )

        return Task(label, 0, compile_it)

    reports = compile_all(
        [task(label) for label in labels],
        jobs=os.cpu_count() or 1,
        memory=memory_at_hand(),
        announce=lambda names: progress("compile", ", ".join(names)),
    )
    for label, report in zip(labels, reports, strict=True):
        (graph,) = report.graphs
        ins, outs = ([_port(t) for t in side] for side in (graph.inputs, graph.outputs))
        onnx.save(ep_context(label, ins, outs, f"{label}.bin"), folder / f"{label}.onnx")


def _port(tensor: TensorInfo) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, tensor.dtype, tensor.shape
