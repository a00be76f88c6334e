"""What tracing, calibrating and lowering need of this machine, estimated from sizes with measured rates.

Measured with torch 2.13 on one core of a server processor, on layers of Llama-2-7B.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmconv.backend import Stage
from llmconv.graph.sizes import PartSize
from llmconv.prepare import Checked

PROCESS = 330_000_000  # bytes of Python with torch and ONNX, before any work
NODE_BYTES = 4_000  # 90,000 nodes of two graphs of Llama-2-7B: 652 MB at the peak
NODE_SECONDS = 1.3e-4  # the same: 12 s from tracing to the last structural pass
LOWER_SECONDS = 1.5e-4  # a node: 13.6 s for the same two graphs
ONNX_BYTES = 350  # of the ONNX files, a node of the fx graphs
WEIGHTS_IN_MEMORY = 5  # two read ahead, one computed with, two that wait to be quantized
FLOAT = 4  # bytes; weights and values are float32 here
QUANTIZE_BYTES = 12  # beside a weight's float32, bytes an element while it is rounded
FLOPS = 100e9  # a second, of calibration's matrix products
READ_SECONDS = 3.2e-9  # a weight, read from disk and rounded
VALUES_ALIVE = 12  # values of a layer's width that are in memory at once for each token of calibration


def core_stages(checked: Checked, parts: Sequence[PartSize]) -> list[Stage]:
    """Tracing and passes, calibration where a pass asks for it, lowering to ONNX."""
    nodes = sum(p.nodes for p in parts)
    elements = sum(p.elements for p in parts)
    weights = sum(p.weight_bytes for p in parts)
    graphs = len(parts[0].graphs)
    calibrates = checked.recipe.calibration is not None and any(p.needs_calibration for p in checked.passes)
    held = PROCESS + nodes * NODE_BYTES * (graphs + calibrates) // graphs
    largest = max(p.largest for p in parts)
    writing = largest * (FLOAT + QUANTIZE_BYTES)
    stages = [Stage("trace and passes", nodes * NODE_SECONDS * (graphs + calibrates) / graphs, held, 0)]
    reading = elements * READ_SECONDS
    if calibrates:
        stages.append(_calibration(checked, parts, held))
    lower = LOWER_SECONDS * nodes + (0 if calibrates else reading)
    return [*stages, Stage("lower to ONNX", lower, held + writing, weights + nodes * ONNX_BYTES)]


def _calibration(checked: Checked, parts: Sequence[PartSize], held: int) -> Stage:
    """Every sample goes through the float graph at once, layer by layer; weights are rounded as they are read."""
    calibration, config = checked.recipe.calibration, checked.config
    assert calibration is not None
    elements = sum(p.elements for p in parts)
    tokens = calibration.samples * calibration.tokens
    kept = 2 * config.kv_heads * config.head_dim * max(p.layers for p in parts)  # keys and values, a part's outputs
    a_token = VALUES_ALIVE * config.hidden + kept + config.vocabulary + config.heads * calibration.tokens
    largest = max(p.largest for p in parts)
    memory = held + largest * (FLOAT * WEIGHTS_IN_MEMORY // 2 + QUANTIZE_BYTES) + tokens * a_token * FLOAT
    return Stage("calibrate", 2 * elements * tokens / FLOPS + elements * READ_SECONDS, memory, 0)
