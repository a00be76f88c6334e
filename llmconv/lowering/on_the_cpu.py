"""Compares what two ONNX files compute of the same random inputs, on ONNX Runtime's CPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from llmconv.errors import LoweringError

Arrays = Mapping[str, NDArray[Any]]
IDS = 2  # random ids are below it, so that every table has their rows
MIDDLE = 0.25  # of an integer type's range, around its middle: numbers far out are cut off on their way
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """Where two files differ most.

    Attributes:
        share: of the output's largest number, or of the whole range of its integers.
    """

    output: str
    share: float


def difference(before: Path, after: Path) -> Difference | None:
    """The output that differs most; None where ONNX Runtime does not run the first file either.

    Raises:
        LoweringError: it runs the first file, and refuses the second.
    """
    model = onnx.load(str(before), load_external_data=False)
    inputs = {port.name: _drawn(port, seed) for seed, port in enumerate(model.graph.input)}
    try:
        old = _run(before, inputs)
    except LoweringError as error:
        logger.warning("ONNX passes are not compared: %s", error)
        return None
    new = _run(after, inputs)
    found = [Difference(name, _share(old[name], new[name])) for name in old]
    return max(found, key=lambda one: one.share if one.share == one.share else np.inf)  # NaN is the largest


def _drawn(port: onnx.ValueInfoProto, seed: int) -> NDArray[Any]:
    kind, generator = port.type.tensor_type, np.random.default_rng(seed)
    shape = tuple(d.dim_value for d in kind.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if np.issubdtype(dtype, np.floating):
        return generator.standard_normal(shape).astype(dtype)
    if dtype.itemsize >= np.dtype(np.int32).itemsize:
        return generator.integers(IDS, size=shape).astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    middle, reach = (low + high) / 2, MIDDLE * (high - low) / 2
    return generator.integers(int(middle - reach), int(middle + reach), size=shape).astype(dtype)


def _run(file: Path, inputs: Arrays) -> dict[str, NDArray[Any]]:
    import onnxruntime as ort  # noqa: PLC0415  0.2 s that a recipe without ONNX passes should not pay

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # op by op, as the file says
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
        reason = str(error).strip().partition("\n")[0].replace(str(file), "it")
        raise LoweringError(f"ONNX Runtime refuses it: {reason}") from error


def _share(before: NDArray[Any], after: NDArray[Any]) -> float:
    if np.issubdtype(before.dtype, np.integer):
        size = float(np.iinfo(before.dtype).max) - float(np.iinfo(before.dtype).min)
    else:
        size = max(float(np.abs(before).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(after.astype(np.float64) - before.astype(np.float64)).max()) / size
