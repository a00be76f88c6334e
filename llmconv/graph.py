"""The one intermediate form: fx graphs of ATen ops at fixed shapes, with structural names and weights without data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from llmconv import ops
from llmconv.errors import PassError

aten = torch.ops.aten

Kind = Literal[
    "input_ids",
    "position_ids",
    "attention_mask",
    "rope_cos",
    "rope_sin",
    "past_key",
    "past_value",
    "new_key",
    "new_value",
    "hidden",
    "logits",
]

NAME = "llmconv_name"  # node.meta: the structural name
ROLE = "llmconv_role"  # node.meta: what the value is in the model, when a pass must find it
MADE_BY = "llmconv_made_by"  # node.meta: the pass that made the node
IO_META = "llmconv_io"  # node.meta of placeholders (IO) and of the output node (dict of name -> IO)

_SHORT = {"scaled_dot_product_attention": "sdpa"}


@dataclass(frozen=True)
class IO:
    """What one input or output of a graph means to the host that runs it.

    Attributes:
        kind: the tensor's meaning; the host fills and reads it by this, never by its name.
        layer: the layer of a key or value, else None.
        head_axis: the axis that holds the KV heads, for keys and values.
        token_axis: the axis that holds cached positions, for keys and values.
    """

    kind: Kind
    layer: int | None = None
    head_axis: int | None = None
    token_axis: int | None = None


@dataclass
class Graph:
    """One graph of the recipe: `ar` tokens read in one run, `context` positions seen, as one or more parts.

    Attributes:
        rope: cos and sin, each (context, head_dim / 2) float32, once they are inputs that the host fills.
    """

    name: str
    ar: int
    context: int
    parts: list[fx.GraphModule]
    rope: tuple[torch.Tensor, torch.Tensor] | None = None

    def label(self, part: int) -> str:
        """The graph's name inside a binary and on disk; Genie orders parts by it. `part` counts from 0."""
        return f"{self.name}_ar{self.ar}_cl{self.context}_{part + 1}_of_{len(self.parts)}"


@dataclass
class Model:
    """What passes work on: every graph of a recipe, and the one set of weights that they share."""

    graphs: dict[str, Graph]
    weights: Any
    config: Any
    encodings: Any = None
    calibration: list[Sequence[int]] = field(default_factory=list)


def name_of(node: fx.Node) -> str:
    """The structural name of a node, e.g. `layers.3.self_attn.q_proj.h5`."""
    return str(node.meta[NAME])


def value_of(node: fx.Node) -> torch.Tensor:
    """The fake tensor of a node: shape (static) and dtype."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        raise PassError(f"node '{node.meta.get(NAME, node.name)}' is not a tensor")
    return value


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The static shape of a node."""
    return tuple(value_of(node).shape)


def is_weight(node: fx.Node) -> bool:
    """Whether a node is a weight or computed from weights alone (a head's rows, a reshape)."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.op == "get_attr"


def inputs_of(part: fx.GraphModule) -> dict[str, fx.Node]:
    """The inputs of a part by I/O name, in order."""
    return {str(n.target): n for n in part.graph.nodes if n.op == "placeholder"}


def output_node(part: fx.GraphModule) -> fx.Node:
    """The node that returns the part's outputs as a dict of name -> node."""
    return next(n for n in reversed(part.graph.nodes) if n.op == "output")


def outputs_of(part: fx.GraphModule) -> dict[str, fx.Node]:
    """The outputs of a part by I/O name, in order."""
    return dict(output_node(part).args[0])  # type: ignore[arg-type]


def set_outputs(part: fx.GraphModule, outputs: Mapping[str, fx.Node], io: Mapping[str, IO]) -> None:
    """Replace the outputs of a part."""
    node = output_node(part)
    node.args = (dict(outputs),)
    node.meta[IO_META] = dict(io)


def io_of(part: fx.GraphModule) -> tuple[dict[str, IO], dict[str, IO]]:
    """The meaning of each input and of each output of a part."""
    return {name: n.meta[IO_META] for name, n in inputs_of(part).items()}, dict(output_node(part).meta[IO_META])


def trace(module: nn.Module, ar: int, context: int, name: str) -> Graph:
    """Trace a stateless causal module, `forward(input_ids, position_ids) -> logits`, at `ar` tokens.

    The module lies on the meta device and has one submodule `rotary` that returns (cos, sin).
    Every node of the result carries a structural name: the path of the module that made it, then the op.
    """
    ids, positions = (torch.zeros(1, ar, dtype=torch.int32, device="meta") for _ in range(2))
    rotary = next(m for path, m in module.named_modules() if path.split(".")[-1] == "rotary")
    hook = rotary.register_forward_hook(lambda _m, _i, out: (ops.mark(out[0], "rope_cos"), ops.mark(out[1], "rope_sin")))
    try:
        with torch.no_grad():
            exported = torch.export.export(module, (ids, positions), strict=False)
    finally:
        hook.remove()
    gm = exported.module(check_guards=False)
    if not isinstance(gm, fx.GraphModule):
        raise PassError(f"torch.export gave a {type(gm).__name__} instead of a GraphModule")
    _normalize(gm)
    return Graph(name, ar, context, [gm])


def _normalize(gm: fx.GraphModule) -> None:
    """Give every node its structural name; drop marks and assertions; put weights beside their first use."""
    for node in list(gm.graph.nodes):
        if node.op == "placeholder":
            node.target, node.meta[IO_META] = str(node.target), IO(str(node.target))  # type: ignore[arg-type]
        elif node.target is torch.ops.llmconv.mark.default:
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
    node = output_node(gm)
    (logits,) = pytree.tree_leaves(node.args[0])
    gm.graph.set_codegen(fx.graph.CodeGen())
    set_outputs(gm, {"logits": logits}, {"logits": IO("logits")})
    finish(gm)


def _name_nodes(gm: fx.GraphModule) -> None:
    paths = {n: _module_path(n) for n in gm.graph.nodes if n.op == "call_function"}
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


def _module_path(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return re.sub(r"@\d+$", "", str(stack[-1][0])) if stack else ""


def op_name(node: fx.Node) -> str:
    """The short name of a node's op: `linear`, `sdpa`, `mul`."""
    name = str(node.target).split(".")[-2] if isinstance(node.target, torch._ops.OpOverload) else node.name
    return _SHORT.get(name, name)


def finish(gm: fx.GraphModule) -> None:
    """Drop dead nodes and check the graph's form."""
    gm.graph.eliminate_dead_code()
    for node in [n for n in gm.graph.nodes if n.op == "get_attr" and not n.users]:
        gm.graph.erase_node(node)
    gm.graph.lint()


def insert(
    graph: fx.Graph, target: Callable[..., Any], args: tuple[Any, ...], name: str, kwargs: Mapping[str, Any] | None = None
) -> fx.Node:
    """Insert one op at the graph's insert point, with `meta["val"]` inferred and its structural name given."""
    node = graph.call_function(target, args, dict(kwargs or {}))
    fake_args, fake_kwargs = fx.map_arg((args, dict(kwargs or {})), lambda n: n.meta["val"])
    node.meta[NAME] = name
    node.meta["val"] = target(*fake_args, **fake_kwargs)
    return node


def insert_input(graph: fx.Graph, name: str, like: torch.Tensor, shape: Iterable[int], io: IO) -> fx.Node:
    """Append a float32 input after the inputs that exist."""
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        node = graph.placeholder(name)
    node.target = name
    node.meta |= {NAME: name, IO_META: io, "val": like.new_empty(tuple(shape), dtype=torch.float32)}
    return node


TraceCache = dict[Any, fx.GraphModule]


def splice(node: fx.Node, replacement: Callable[..., Any], cache: TraceCache) -> None:
    """Put the trace of `replacement(*node.args, **node.kwargs)` in the place of a node.

    New nodes are named after the one they replace: `<its name>.<op>`, the last one takes its name. Like nodes
    (same op, constants, shapes) share one trace through `cache`.
    """
    leaves, spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    key = (node.target, str(spec), tuple(_signature(leaf) for leaf in leaves))
    if key not in cache:

        def call(*values: torch.Tensor) -> Any:
            rest = iter(values)
            args, kwargs = pytree.tree_unflatten([next(rest) if isinstance(x, fx.Node) else x for x in leaves], spec)
            return replacement(*args, **kwargs)

        fakes = [value_of(t) for t in tensors]
        with fake_mode_of(fakes):
            cache[key] = make_fx(call, pre_dispatch=True)(*fakes)
    traced = cache[key]
    mapping = dict(zip((n for n in traced.graph.nodes if n.op == "placeholder"), tensors, strict=True))
    with node.graph.inserting_before(node):
        result = node.graph.graph_copy(traced.graph, mapping)  # type: ignore[arg-type]
    if not isinstance(result, fx.Node):
        raise PassError(f"the replacement of '{name_of(node)}' must return one tensor")
    seen: Counter[str] = Counter()
    for original in traced.graph.nodes:
        copy = mapping.get(original)
        if original.op != "call_function" or copy is None:
            continue
        op = op_name(copy)
        copy.meta[NAME] = f"{name_of(node)}.{op}" + (f"_{seen[op]}" if seen[op] else "")
        seen[op] += 1
    if result not in tensors:
        result.meta[NAME] = name_of(node)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, fx.Node):
        value = value_of(leaf)
        return tuple(value.shape), value.dtype
    return leaf


def fake_mode_of(values: Sequence[torch.Tensor]) -> FakeTensorMode:
    """The fake mode that made these values."""
    return next((v.fake_mode for v in values if hasattr(v, "fake_mode")), FakeTensorMode())


def nodes_between(start: Sequence[fx.Node], part: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes that depend on any of `start`, in order, without `start` itself."""
    reached = set(start)
    for node in part.graph.nodes:
        if node not in reached and any(i in reached for i in node.all_input_nodes):
            reached.add(node)
            yield node
