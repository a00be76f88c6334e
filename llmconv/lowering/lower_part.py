"""Lowers a part and runs the recipe's ONNX passes over it, and checks what each one has left."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp

import onnx
import onnx_graphsurgeon as gs
from torch import fx

from llmconv.encodings.value import Encodings
from llmconv.errors import LlmconvError, PassError
from llmconv.lowering.export import opsets
from llmconv.lowering.lower import Lowering, LoweringTable, WeightPlaces
from llmconv.lowering.on_the_cpu import difference
from llmconv.lowering.onnx_pass import OnnxPass
from llmconv.passes.base import said
from llmconv.passes.manager import named

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def lower_part(
    label: str,
    part: fx.GraphModule,
    encodings: Encodings | None,
    weights: WeightPlaces,
    table: LoweringTable,
    passes: Sequence[OnnxPass] = (),
) -> onnx.ModelProto:
    """Lower a part, and run ONNX passes over it.

    Args:
        label: of the part, for messages; all else as of `Lowering`.

    Raises:
        LoweringError: an op has no lowering.
        PassError: names the pass and what it did: it failed, changed something without a word or what goes in or out,
            left what is no valid ONNX, a value without an encoding, or other numbers than it declares.
    """
    model = Lowering(part, encodings, weights, table).run()
    return _rewritten(label, model, passes, weights.path.parent) if passes else model


def _rewritten(label: str, model: onnx.ModelProto, passes: Sequence[OnnxPass], folder: Path) -> onnx.ModelProto:
    """A model after all passes; its weight file lies in the folder."""
    graph = gs.import_onnx(model)
    model = exported(graph)
    for i, p in enumerate(passes):
        with named(p, [q.name for q in passes[:i]], f"{label}: ONNX pass"):
            says = said(p.rewrite(graph))
            now = exported(graph)
            changed = now.SerializeToString(deterministic=True) != model.SerializeToString(deterministic=True)
            if changed and not says:
                raise PassError("says that it changed nothing (False), but changed the graph; return True")
            if changed:
                now = exported(graph.cleanup().toposort())
                _check_ports(model, now)
                _check_encodings(model, now)
                _check_valid(now)
                with _lying_in(folder, model) as before, _lying_in(folder, now) as after:
                    _check_numbers(p, before, after)
                model = now
    return model


def exported(graph: gs.Graph) -> onnx.ModelProto:
    """A graph that passes may have changed, as ONNX."""
    graph.import_domains = opsets(graph)
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=True)
    return model


@contextmanager
def _lying_in(folder: Path, model: onnx.ModelProto) -> Iterator[Path]:
    """A file beside the weights, for as long as it is looked at."""
    handle, name = mkstemp(".onnx", dir=folder)
    os.close(handle)
    try:
        onnx.save(model, name)
        yield Path(name)
    finally:
        Path(name).unlink()


def _check_ports(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """What goes in and out is as it was: names, types, shapes and order."""
    for what in ("input", "output"):
        old, new = ([_form(port) for port in getattr(m.graph, what)] for m in (before, after))
        for was, port in zip([*old, *[None] * len(new)], [*new, *[None] * len(old)], strict=False):
            if was != port:
                raise PassError(f"{what} '{(was or port or '')[0]}' is {port or 'gone'}, and was {was or 'not there'}")


def _form(port: onnx.ValueInfoProto) -> tuple[str, str, tuple[int, ...]]:
    kind = port.type.tensor_type
    return port.name, onnx.TensorProto.DataType.Name(kind.elem_type), tuple(d.dim_value for d in kind.shape.dim)


def _check_encodings(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Each value of a quantized part that is made by an op is quantized, unless it was not before either."""
    if not any(node.op_type == QUANTIZE for node in before.graph.node):
        return
    if new := sorted(_unencoded(after) - _unencoded(before)):
        raise PassError(f"value '{new[0]}' has no encoding; put QuantizeLinear and DequantizeLinear behind it")


def _unencoded(model: onnx.ModelProto) -> set[str]:
    """The float values that an op makes and an op takes as they are."""
    floats = {value.name for value in model.graph.value_info if value.type.tensor_type.elem_type in FLOATS}
    made = {name for n in model.graph.node if n.op_type != DEQUANTIZE for name in n.output if name in floats}
    taken = {name for n in model.graph.node if n.op_type != QUANTIZE for name in n.input}
    return made & taken


def _check_valid(model: onnx.ModelProto) -> None:
    """By ONNX's own rules; weights that lie in a file are inputs here, for an exporter links it, which ONNX refuses."""
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    stored = list(checked.graph.initializer)
    outside = [t for t in stored if t.data_location == onnx.TensorProto.EXTERNAL]
    del checked.graph.initializer[:]
    checked.graph.initializer.extend(t for t in stored if t.data_location != onnx.TensorProto.EXTERNAL)
    checked.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in outside)
    try:
        onnx.checker.check_model(checked, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise PassError(f"the ONNX checker refuses what it left: {' '.join(reason.split())}") from error


def _check_numbers(p: OnnxPass, before: Path, after: Path) -> None:
    try:
        found = difference(before, after)
    except LlmconvError as error:
        raise PassError(str(error)) from error
    if found is not None and not found.share <= p.tolerance:  # also true of NaN
        raise PassError(
            f"output '{found.output}' differs from before by {found.share:.2g} of its largest number, more than the "
            f"{p.tolerance:.0e} that the pass declares"
        )
