"""The HTP simulator against ONNX Runtime, and what happens when it, or the process that holds it, dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tiny_qdq import CHANNELS, PROMPT, TOKEN, ZERO, Parts

from llmconv import BackendError
from llmconv_plugins.qnn.simulator import Simulator


@pytest.fixture(scope="module")
def simulator(parts: Parts) -> Iterator[Simulator]:
    with Simulator({name: parts.twin(name) for name in (PROMPT, TOKEN)}) as opened:
        yield opened


def hidden(tokens: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(20000, 45000, (1, CHANNELS, 1, tokens)).astype(np.uint16)


def on_cpu(file: Path, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(file, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def sqnr(value: NDArray[Any], reference: NDArray[Any], zero: int) -> float:
    if np.array_equal(value, reference):
        return float("inf")
    signal_power = np.sum((reference.astype(np.float64) - zero) ** 2)
    return float(10 * np.log10(signal_power / np.sum((value.astype(np.float64) - reference) ** 2)))


@pytest.mark.parametrize(("name", "tokens"), [(PROMPT, 32), (TOKEN, 1)])
def test_agrees_with_onnxruntime(parts: Parts, simulator: Simulator, name: str, tokens: int) -> None:
    inputs = {"hidden": hidden(tokens)}
    found, wanted = simulator.run(name, inputs), on_cpu(parts.onnx(name), inputs)
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {k: (v.dtype, v.shape) for k, v in wanted.items()}
    assert sqnr(found["out"], wanted["out"], ZERO["out"]) > 60
    assert sqnr(found["value"], wanted["value"], ZERO["value"]) > 45
    assert np.abs(found["value"].astype(int) - wanted["value"]).max() <= 1


def test_runs_depend_on_their_inputs_alone(simulator: Simulator) -> None:
    first = simulator.run(TOKEN, {"hidden": hidden(1)})["out"]
    other = simulator.run(TOKEN, {"hidden": hidden(1, seed=1)})["out"]
    again = simulator.run(TOKEN, {"hidden": hidden(1)})["out"]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_wrong_inputs_are_one_line_and_the_simulator_goes_on(simulator: Simulator) -> None:
    for inputs in ({"hidden": hidden(3)}, {"hidden": hidden(1).astype(np.float32)}, {"typo": hidden(1)}, {}):
        with pytest.raises(BackendError, match=f"^{TOKEN}: running: ") as caught:
            simulator.run(TOKEN, inputs)
        assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="holds no graph 'typo'; it holds prompt"):
        simulator.run("typo", {})
    assert simulator.run(TOKEN, {"hidden": hidden(1)})["out"].shape == (1, CHANNELS, 1, 1)


def test_shared_binary_is_refused(parts: Parts) -> None:
    with pytest.raises(BackendError, match=r"holds 2 graphs over shared weights, which only the device can load"):
        Simulator({"part": parts.binary})


def test_damaged_binary_is_one_line(parts: Parts, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(parts.twin(TOKEN).read_bytes()[:4096])
    with pytest.raises(BackendError, match=r"^token: loading damaged\.bin: ") as caught:
        Simulator({"token": damaged})
    assert "\n" not in str(caught.value)


def test_segmentation_fault_of_onnxruntime_is_one_line(parts: Parts, tmp_path: Path) -> None:
    """Loading a shared binary crashes the simulator; an EPContext file leads there past the check."""
    (tmp_path / "part.bin").symlink_to(parts.binary)
    node = helper.make_node(
        "EPContext",
        ["hidden"],
        ["out", "value"],
        name=TOKEN,
        domain="com.microsoft",
        embed_mode=0,
        ep_cache_context="part.bin",
        main_context=1,
        partition_name=TOKEN,
        source="QNNExecutionProvider",
    )
    shape, turned = (1, CHANNELS, 1, 1), (1, 1, 1, CHANNELS)
    graph = helper.make_graph(
        [node],
        "wrapper",
        [helper.make_tensor_value_info("hidden", TensorProto.UINT16, shape)],
        [
            helper.make_tensor_value_info("out", TensorProto.UINT16, shape),
            helper.make_tensor_value_info("value", TensorProto.UINT8, turned),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "ctx.onnx")
    with pytest.raises(BackendError, match=r"^token: loading ctx\.onnx: ") as caught:
        Simulator({"token": tmp_path / "ctx.onnx"})
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_its_parent(parts: Parts, end: signal.Signals) -> None:
    script = (
        "import sys, time; from llmconv_plugins.qnn.simulator import Simulator\n"
        "with Simulator({'token': sys.argv[1]}) as s:\n"
        "    print(s._child.process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(parts.twin(TOKEN))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.killpg(parent.pid, end) if end == signal.SIGINT else parent.send_signal(end)
        parent.wait(10)
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


ONE_CORE = """
import os, threading
from llmconv_plugins.qnn.simulator_child import _on_one_core

def cores():
    return {frozenset(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")}

over, before = threading.Event(), os.sched_getaffinity(0)
threading.Thread(target=over.wait).start()  # as the simulator's, which wait by asking
with _on_one_core():
    (shared,) = cores()
    assert len(shared) == 1
assert os.sched_getaffinity(0) == before
over.set()
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no threads to cores")
def test_threads_of_a_run_share_a_core() -> None:
    subprocess.run([sys.executable, "-c", ONE_CORE], check=True)
