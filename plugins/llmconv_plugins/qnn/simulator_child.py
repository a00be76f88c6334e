"""Loads compiled graphs and runs them as asked through a pipe; `simulator.Simulator` runs it as a child process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import psutil

from llmconv_plugins.qnn.child import give
from llmconv_plugins.qnn.ep_context import ep_context
from llmconv_plugins.qnn.inside_child import begin, leave, register, system_library
from llmconv_plugins.qnn.message import receive, send
from llmconv_plugins.qnn.qnn_system import read


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    begin()
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code prints to stdout
    device, backend = register()
    sessions: dict[str, Any] = {}
    while True:
        try:
            request, inputs = receive(requests)
        except EOFError:
            leave(0)
        try:
            if "load" in request:
                name = request["load"]
                sessions[name] = _load(Path(request["path"]), len(sessions), device, backend)
                send(answers, {}, {})
            else:
                session = sessions[request["run"]]
                names = [output.name for output in session.get_outputs()]
                with _on_one_core():
                    outputs = session.run(names, inputs)
                send(answers, {}, dict(zip(names, outputs, strict=True)))
        except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
            send(answers, {"error": str(error)}, {})


@contextmanager
def _on_one_core() -> Iterator[None]:
    """Keep all threads on the core that this one has been given; afterwards this one may have any again.

    One thread of the simulator computes, and a dozen, one for each of the NPU's, ask again and again whether there is
    something to do: on one core a run takes as long, and the other stays free for whoever computes beside.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    process, allowed = psutil.Process(), os.sched_getaffinity(0)
    here = {process.cpu_num()}
    for thread in process.threads():
        with suppress(ProcessLookupError):  # it has ended since
            os.sched_setaffinity(thread.id, here)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _load(path: Path, number: int, device: Any, backend: str) -> Any:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices([device], {"backend_path": backend, "offload_graph_io_quantization": "0"})
    model = path if path.suffix == ".onnx" else _wrap(path, number)
    return ort.InferenceSession(str(model), options)


def _wrap(binary: Path, number: int) -> Path:
    """Write an ONNX file of one EPContext node that loads a bare binary; ONNX Runtime wants the binary beside it."""
    graphs = read(binary, system_library())["graphs"]
    if len(graphs) != 1:
        raise ValueError(f"holds {len(graphs)} graphs over shared weights, which only the device can load")
    beside = Path(f"graph_{number}.bin")
    give(binary, beside)
    graph = graphs[0]
    ins, outs = ([(t["name"], t["dtype"], t["shape"]) for t in graph[side]] for side in ("inputs", "outputs"))
    model = ep_context(graph["name"], ins, outs, beside.name)
    file = beside.with_suffix(".onnx")
    onnx.save(model, file)
    return file


if __name__ == "__main__":
    main()
