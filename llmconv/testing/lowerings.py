"""Try a lowering on one op: what ONNX computes of it, in float and on 16 bits, against torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor, fx, nn

from llmconv.bundle.part_file import WeightFile
from llmconv.encodings.value import Encoding, Encodings
from llmconv.errors import LoweringError
from llmconv.graph.edit import graph_module, insert, set_outputs
from llmconv.graph.model import IO, IO_META, NAME, output_node
from llmconv.lowering.lower import Lowering, LoweringTable
from llmconv.lowering.write import PlacedWeights
from llmconv.weights.store import DictStore

NAME_OF_OP = "tried"


@dataclass(frozen=True)
class LoweringTrial:
    """What a lowering made.

    Attributes:
        model: the ONNX of the op alone, in float.
        ops: ONNX op -> how often it stands there.
        error: the largest difference from what torch computes, as a share of the largest number.
        steps: of the op between quantized inputs and a quantized output of 16 bits: the largest difference from what
            torch gives of the same inputs, in steps of the output.
    """

    model: onnx.ModelProto
    ops: Counter[str]
    error: float
    steps: float


def try_lowering(
    table: LoweringTable, op: Any, *args: Any, bound: float = 1e-5, steps: float = 1.5, **kwargs: Any
) -> LoweringTrial:
    """Lower one op, and compare what its ONNX computes with torch.

    Args:
        table: what `register_lowerings` gives; the op's function is called.
        op: e.g. `aten.abs.default`.
        args, kwargs: of the op; float tensors among them are the graph's inputs.
        bound: of `error`.
        steps: of `steps`.

    Raises:
        LoweringError: it has no lowering, or ONNX computes something else.
    """
    if op not in table:
        raise LoweringError(f"{op} has no lowering in this table; it has {', '.join(map(str, table)) or 'none'}")
    inputs = {f"x{i}": x for i, x in enumerate(a for a in args if isinstance(a, Tensor))}
    part = _part(op, inputs, args, kwargs)
    expected = op(*args, **kwargs).numpy()
    model, found = _run(part, table, None, {name: x.numpy() for name, x in inputs.items()})
    error = float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
    if not error <= bound:
        raise LoweringError(f"the lowering of {op} differs from torch by {error:.2g} of the largest number")
    apart = _apart(part, table, inputs, op, args, kwargs)
    if not apart <= steps:
        raise LoweringError(f"the lowering of {op} differs from torch by {apart:.1f} steps of 16 bits")
    return LoweringTrial(model, Counter(node.op_type for node in model.graph.node), error, apart)


def _apart(
    part: fx.GraphModule,
    table: LoweringTable,
    inputs: Mapping[str, Tensor],
    op: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> float:
    values = {name: _range_of(x) for name, x in inputs.items()}
    rounded = iter([values[name].fake_quantize(x) for name, x in inputs.items()])
    expected = op(*[next(rounded) if isinstance(a, Tensor) else a for a in args], **kwargs)
    values[NAME_OF_OP] = out = _range_of(expected)
    ints = {name: values[name].quantize(x).numpy().astype(values[name].dtype) for name, x in inputs.items()}
    _, found = _run(part, table, Encodings(values), ints)
    return float((out.dequantize(torch.from_numpy(found.astype(np.int32))) - expected).abs().max()) / out.scale


def _range_of(x: Tensor) -> Encoding:
    return Encoding.from_range(float(x.min()), float(x.max()), 16)


def _part(op: Any, inputs: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.GraphModule:
    """One op between inputs and an output."""
    graph = fx.Graph()
    nodes = {}
    for name, x in inputs.items():
        nodes[name] = node = graph.placeholder(name)
        node.meta |= {NAME: name, IO_META: IO("hidden"), "val": x.to("meta")}
    rest = iter(nodes.values())
    result = insert(graph, op, tuple(next(rest) if isinstance(a, Tensor) else a for a in args), NAME_OF_OP, kwargs)
    graph.output({"y": result})
    part = graph_module(nn.Module(), graph)
    output_node(part).meta[NAME] = "output"
    set_outputs(part, {"y": result}, {"y": IO("hidden")})
    return part


def _run(
    part: fx.GraphModule, table: LoweringTable, encodings: Encodings | None, given: Mapping[str, NDArray[Any]]
) -> tuple[onnx.ModelProto, NDArray[Any]]:
    """Its ONNX, and what the reference of the ONNX standard computes."""
    store = DictStore({})
    with TemporaryDirectory() as folder, WeightFile(Path(folder) / "part.data") as file:
        model = Lowering(part, encodings, PlacedWeights(file, store, encodings or Encodings()), table).run()
    (found,) = ReferenceEvaluator(model).run(["y"], dict(given))
    return model, np.asarray(found)
