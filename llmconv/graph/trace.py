"""Trace a source's module into the intermediate form: one GraphModule of ATen ops, every node named by its place."""

from __future__ import annotations

import inspect
import pickle
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from llmconv.errors import PassError
from llmconv.graph import ops
from llmconv.graph.edit import copy_part, finish, set_outputs
from llmconv.graph.model import IO, IO_META, NAME, ROLE, ROTARIES, Graph, Kind, aten, name_of, op_name, output_node
from llmconv.graph.record import record
from llmconv.work.collector import collector_paused

KEPT = 8  # traces: those of a recipe's graphs, and of the source at the lengths that verification and proof read

Content = tuple[bytes, tuple[type, ...]]


_kept: OrderedDict[tuple[Content, int], fx.GraphModule] = OrderedDict()  # the last traces, the latest used last
_KEEPING = threading.Lock()


def trace(module: nn.Module, ar: int, context: int, name: str) -> Graph:
    """Trace a stateless causal module, `forward(input_ids, position_ids) -> logits`, at `ar` tokens.

    The module lies on the meta device. Where it has a submodule `rotary` that returns (cos, sin), and perhaps a second
    one, `rotary_local`, passes find these.
    Every node of the result carries a structural name: the path of the module that made it, then the op.
    A proof traces what the conversion has traced: the last traces are kept, and copied for modules that equal theirs.
    """
    with _KEEPING, collector_paused():
        content = _content(module)
        if content is None:
            return Graph(name, ar, context, [_trace(module, ar)])
        key = content, ar
        if key not in _kept:
            _kept[key] = _trace(module, ar)
        _kept.move_to_end(key)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
        return Graph(name, ar, context, [copy_part(_kept[key])])


def trace_at(module: nn.Module, inputs: Mapping[str, Tensor], name: str) -> Graph:
    """Trace any module at some inputs, for passes that ask nothing of a decoder.

    Args:
        module: on the meta device.
        inputs: argument of `forward` -> a tensor of its shape and type.

    Returns:
        A graph whose `ar` and `context` say nothing; its outputs are `output`, `output_1` and so on.
    """
    with collector_paused():
        gm = record(module, {name: value.to("meta") for name, value in inputs.items()})
        _normalize(gm)
        found = pytree.tree_leaves(output_node(gm).args[0])
        outputs = {f"output_{i}" if i else "output": node for i, node in enumerate(found)}
        for node in gm.graph.find_nodes(op="placeholder"):
            node.meta[IO_META] = IO("hidden")
        _set_outputs(gm, outputs, dict.fromkeys(outputs, IO("hidden")))
    return Graph(name, 1, 1, [gm])


def _content(module: nn.Module) -> Content | None:
    """All that makes the module what it is; None where it holds weights, or what cannot be written down."""
    if not all(parameter.is_meta for parameter in module.parameters()):
        return None
    try:
        written = pickle.dumps(module)  # names classes, which a notebook may define again
    except Exception:  # of whatever the module holds
        return None
    return written, tuple(type(m) for m in module.modules())


def _trace(module: nn.Module, ar: int) -> fx.GraphModule:
    takes = list(inspect.signature(module.forward).parameters)[:2]
    if takes != ["input_ids", "position_ids"]:
        raise PassError(f"{type(module).__name__}.forward takes {takes} instead of input_ids and position_ids")
    found = {path.split(".")[-1]: m for path, m in module.named_modules()}
    hooks = [found[name].register_forward_hook(_marks(roles)) for name, roles in ROTARIES.items() if name in found]
    try:
        gm = record(module, {name: torch.zeros(1, ar, dtype=torch.int32, device="meta") for name in takes})
    finally:
        for hook in hooks:
            hook.remove()
    _normalize(gm)
    for node in gm.graph.find_nodes(op="placeholder"):
        node.meta[IO_META] = IO(node.target)
    (logits,) = pytree.tree_leaves(output_node(gm).args[0])
    _set_outputs(gm, {"logits": logits}, {"logits": IO("logits")})
    return gm


def _marks(roles: tuple[Kind, Kind]) -> Callable[..., tuple[Tensor, ...]]:
    def mark(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(ops.mark(value, role) for value, role in zip(output, roles, strict=True))

    return mark


def _normalize(gm: fx.GraphModule) -> None:
    """Give every node its structural name; drop marks and assertions; put weights beside their first use."""
    for node in list(gm.graph.nodes):
        if node.op == "placeholder":
            node.target = str(node.target)
        elif node.target is ops.MARK:
            node.args[0].meta[ROLE] = node.args[1]
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        elif node.target is aten._assert_tensor_metadata.default:
            gm.graph.erase_node(node)
        elif "device" in node.kwargs:  # constants of the trace are made where the graph runs, not on meta
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "device"}
        elif node.op == "get_attr" and node.users:
            first = min(node.users)
            first.prepend(node)
    _name_nodes(gm)


def _set_outputs(gm: fx.GraphModule, outputs: dict[str, fx.Node], io: dict[str, IO]) -> None:
    gm.graph.set_codegen(fx.graph.CodeGen())
    set_outputs(gm, outputs, io)
    finish(gm)


def _name_nodes(gm: fx.GraphModule) -> None:
    paths = {n: name_of(n) for n in gm.graph.nodes if n.op == "call_function"}
    ops_in = Counter(paths.values())
    seen: Counter[str] = Counter()
    for node in gm.graph.nodes:
        if node.op != "call_function":
            node.meta[NAME] = str(node.target)
            continue
        path = paths[node]
        op = op_name(node)
        name = path if path and ops_in[path] == 1 else f"{path}.{op}".lstrip(".")
        node.meta[NAME] = name if not seen[name] else f"{name}_{seen[name]}"
        seen[name] += 1
