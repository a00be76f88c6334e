"""What tracing, calibrating and lowering need of this machine, estimated from sizes with measured rates.

Measured with torch 2.13 on a server processor: products on two cores, all else on one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmconv.backends.backend import Stage
from llmconv.graph.sizes import PartSize
from llmconv.passes.base import Training
from llmconv.prepare.resolve import Checked
from llmconv.quantization.calibration import BATCH_TOKENS
from llmconv.quantization.moments import BYTES_A_PAIR
from llmconv.quantization.quantizer import Quantizer
from llmconv.quantization.student import WINDOWS

PROCESS = 330_000_000  # bytes of Python with torch and ONNX, before any work
NODE_BYTES = 4_000  # 90,000 nodes of two graphs of Llama-2-7B: 652 MB at the peak
NODE_SECONDS = 1.3e-4  # the same: 12 s from tracing to the last structural pass
LOWER_SECONDS = 1.5e-4  # a node: 13.6 s for the same two graphs
ONNX_BYTES = 350  # of the ONNX files, a node of the fx graphs
FLOAT = 4  # bytes; weights and values are float32 here
# One layer of Llama-2-7B twice, embedding and lm_head, 8 and 2 samples of 512 tokens: 2.71 and 2.33 GB, 73 and 43 s.
WEIGHT_COPIES = 3  # of the largest weight in float32: read ahead, computed with, waiting to be rounded
VALUES_ALIVE = 4  # values of a layer's width in memory at once, for each token of a batch
# In GPTQ, 32 samples of 512 tokens, two threads, a slow hour: a layer of Llama-2-7B 183 s, 1.1B whole 1,510 s.
FLOPS = 75e9  # a second and thread, of matrix products and what lies between them
# SmolLM2 in GPTQ, 32 samples of 256 tokens: 162 s and 1.5 GB.
MOMENTS = 0.75  # of the model's own products, those of a token's inputs with themselves
QUANTIZE_SECONDS = 1.5e-7  # a weight, by columns
SCALE_SECONDS = 5e-9  # a weight, whose scale alone is searched; 36 s for 7B
WIDE = 3  # times the hidden width, at most, that a linear reads
# SmolLM2, 120 steps of 2 windows of 256 tokens, two threads, a slow hour: 395 s and 4.2 GB, the model held whole.
TRAINED = 7  # operations of a weight for each token that is trained on: forward, backward, and float beside
KEPT = 50  # numbers of a layer's width that a token's gradient needs, in each layer
ROUND_SECONDS = 9e-9  # a weight, read from disk and rounded; 57 s for 7B


def core_stages(checked: Checked, parts: Sequence[PartSize]) -> list[Stage]:
    """Tracing and passes, tuning and calibration where a pass asks for it, lowering to ONNX."""
    nodes = sum(p.nodes for p in parts)
    elements = sum(p.elements for p in parts)
    weights = sum(p.weight_bytes for p in parts)
    graphs = len(parts[0].graphs)
    calibrates = checked.recipe.calibration is not None and any(p.needs_calibration for p in checked.passes)
    traced = (graphs + calibrates) / graphs  # calibration has a graph of its own, as large as the others
    held = PROCESS + round(nodes * NODE_BYTES * traced)
    stages = [Stage("trace and passes", nodes * NODE_SECONDS * traced, held, 0)]
    lowering = LOWER_SECONDS * nodes
    if calibrates:
        stages += [_tuning(checked, parts, held, t) for p in checked.passes if (t := p.trains) is not None]
        stages.append(_calibration(checked, parts, held))
    else:  # which else has rounded and written every weight
        lowering += elements * ROUND_SECONDS
        held += _weights(parts)
    return [*stages, Stage("lower to ONNX", lowering, held, weights + nodes * ONNX_BYTES)]


def _flops() -> float:
    """A second, on the threads that torch takes here."""
    return FLOPS * torch.get_num_threads()


def _weights(parts: Sequence[PartSize]) -> int:
    return max(p.largest for p in parts) * FLOAT * WEIGHT_COPIES


def _calibration(checked: Checked, parts: Sequence[PartSize], held: int) -> Stage:
    """Samples go through the float graph in batches, layer by layer, and lie on disk between; weights are rounded."""
    calibration, config = checked.recipe.calibration, checked.config
    assert calibration is not None
    elements = sum(p.elements for p in parts)
    length = calibration.text.stat().st_size if calibration.text.is_file() else 0  # bytes, and so tokens at most
    samples = min(calibration.samples, max(1, length // calibration.tokens))
    tokens = samples * calibration.tokens
    kept = 2 * config.kv_heads * config.head_dim  # keys and values of a layer
    a_token = VALUES_ALIVE * config.hidden + kept + config.vocabulary
    asked = [q for q in checked.used if isinstance(q, Quantizer) and q.needs_inputs]
    streams = 2 if any(q.needs_float for q in asked) else 1
    looks = sum(p.structural and p.needs_calibration for p in checked.passes)  # each sends the samples through once
    seconds = 2 * elements * tokens * (streams + looks) / _flops() + elements * ROUND_SECONDS
    memory = held + _weights(parts) + max(BATCH_TOKENS, calibration.tokens) * a_token * FLOAT
    if any(q.needs_products for q in asked):
        seconds += MOMENTS * 2 * elements * tokens * streams / _flops() + elements * QUANTIZE_SECONDS
        memory += (WIDE * config.hidden) ** 2 * BYTES_A_PAIR
    elif asked:
        seconds += elements * SCALE_SECONDS
    return Stage("calibrate", seconds, memory, 0)


def _tuning(checked: Checked, parts: Sequence[PartSize], held: int, training: Training) -> Stage:
    """Weights as they are and as they are quantized, and what the gradients of a step's samples need."""
    calibration, config = checked.recipe.calibration, checked.config
    assert calibration is not None
    elements, largest = sum(p.elements for p in parts), max(p.largest for p in parts)
    tokens = calibration.tokens
    layers, weights = (config.layers, elements) if training.whole else (1, max(largest, elements // config.layers))
    values = WINDOWS * tokens * (layers * KEPT * config.hidden + VALUES_ALIVE * config.vocabulary)
    seconds = TRAINED * elements * tokens * training.windows / _flops()
    return Stage("tune", seconds, held + (2 * weights + values) * FLOAT, 0)
