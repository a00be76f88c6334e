"""Shows, without running them, that the shipped binaries hold what the manifest says."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmconv import Bundle
from llmconv.bundle import ONNX_FOLDER, Check, TensorSpec
from llmconv_plugins.qnn.context_binary import TensorInfo, read_info

SIZE_MATTERS = 50_000_000  # bytes of weights from which a binary's size is judged


def prove_binaries(bundle: Bundle) -> list[Check]:
    """Read the shipped binaries back: names, shapes, types, scales and offsets, and size."""
    return [check for entry in bundle.binaries if not entry["simulator"] for check in _prove(bundle, entry)]


def _prove(bundle: Bundle, entry: dict[str, Any]) -> list[Check]:
    file = bundle.path(entry["file"])
    expected: dict[str, Any] = {}
    for graph in bundle.graphs.values():
        part = graph.parts[entry["part"]]
        expected |= {f"{part.label} {t.name}": _as_read(t) for t in (*part.inputs, *part.outputs)}
    info = read_info(file)
    graphs, label = info.graphs, entry["file"].removeprefix("qnn/")
    found = {f"{g.name} {t.name}": t for g in graphs for t in (*g.inputs, *g.outputs)}
    wrong = [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]
    measured = f"{len(found)} tensors equal" if not wrong else f"{len(wrong)} differ, first {wrong[0]}"
    checks = [Check(5, f"{label}: graphs and I/O, read back", measured, "equal the manifest", not wrong)]
    if entry.get("targets"):
        soc = bundle.manifest["target"]["soc_model"]
        checks.append(
            Check(5, f"{label}: QNN's number of its chipset", f"{info.soc_model}", soc, f"{info.soc_model}" == soc)
        )
    spilled = {g.name: g.spill_fill for g in graphs if g.spill_fill is not None}
    if spilled:
        most = max(spilled, key=lambda name: spilled[name])
        name = f"{label}: spill-fill buffer of {most}, the largest"
        checks.append(Check(5, name, f"{spilled[most] / 1e6:.2f} MB"))
    weights = bundle.path(f"{ONNX_FOLDER}/{file.stem}.data").stat().st_size
    if weights > SIZE_MATTERS:
        ratio = file.stat().st_size / weights
        checks.append(Check(5, f"{label}: size over weight bytes", f"{ratio:.3f}", "≤ 1.10", ratio <= 1.10))
    return checks


def _as_read(spec: TensorSpec) -> TensorInfo:
    """A tensor of the manifest as QNN reports it: offsets are negative zero points."""
    if spec.encoding is None:
        return TensorInfo(spec.name, spec.shape, spec.dtype, None, None, np.dtype(spec.dtype).itemsize * 8)
    encoding = spec.encoding
    return TensorInfo(spec.name, spec.shape, spec.dtype, encoding.scale, -encoding.zero_point, encoding.bits)
