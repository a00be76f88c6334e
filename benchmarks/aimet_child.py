"""Perplexity of a float ONNX model whose convolutions AIMET quantizes; `beside_aimet.py` runs it where aimet-onnx is.

Run: python aimet_child.py FOLDER METHOD, the folder being as `beside_aimet.py` fills it; prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from aimet_onnx import QuantizationSimModel, apply_seq_mse, int4, int16

HEAD_BITS = 8  # of the last convolution, lm_head


def perplexity(session: Any, inputs: list[dict[str, np.ndarray]]) -> float:
    """Of windows, each read from its first token on."""
    lost: list[np.ndarray] = []
    for given in inputs:
        (logits,) = session.run(["logits"], given)
        logits = logits.reshape(-1, logits.shape[-1])[:-1].astype(np.float64)
        most = logits.max(axis=1)
        total = most + np.log(np.exp(logits - most[:, None]).sum(axis=1))
        aims = given["input_ids"].reshape(-1)[1:]
        lost.append(total - logits[np.arange(len(aims)), aims])
    return float(np.exp(np.concatenate(lost).mean()))


def quantized(model: onnx.ModelProto, method: str, samples: list[dict[str, np.ndarray]]) -> Any:
    """AIMET's model: convolutions' weights of 4 bits a row, the last one's of 8, all else float."""
    weights = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    sim = QuantizationSimModel(model, param_type=int4, activation_type=int16, providers=["CPUExecutionProvider"])
    for name, quantizer in sim.qc_quantize_op_dict.items():
        quantizer.enabled = name in weights
    for name in weights:
        sim.qc_quantize_op_dict[name].use_symmetric_encodings = True
        sim.qc_quantize_op_dict[name].enable_per_channel_quantization()
    sim.qc_quantize_op_dict[weights[-1]].set_bitwidth(HEAD_BITS)
    if method == "seqmse":
        apply_seq_mse(sim, samples)
    sim.compute_encodings(samples[:1])
    return sim


def main() -> None:
    """Print the figures."""
    folder, method = Path(sys.argv[1]), sys.argv[2]
    kept = np.load(folder / "inputs.npz")
    common = {name: kept[name] for name in kept.files if name not in ("windows", "samples")}
    windows, samples = ([{"input_ids": ids[None], **common} for ids in kept[key]] for key in ("windows", "samples"))
    file = next(folder.glob("onnx/*.onnx"))
    start = time.monotonic()
    sim = None if method == "float" else quantized(onnx.load(str(file)), method, samples)
    session = (
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]) if sim is None else sim.session
    )
    seconds = time.monotonic() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    processor = used.ru_utime + used.ru_stime
    found = perplexity(session, windows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"perplexity": found, "seconds": seconds, "processor": processor, "peak": peak}))


if __name__ == "__main__":
    main()
