"""Edit a graph: insert ops and inputs, replace a node by traced PyTorch, change the outputs, drop what is dead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from llmconv.errors import PassError
from llmconv.graph.model import IO, IO_META, NAME, name_of, op_name, output_node, value_of


def set_outputs(part: fx.GraphModule, outputs: Mapping[str, fx.Node], io: Mapping[str, IO]) -> None:
    """Replace the outputs of a part."""
    node = output_node(part)
    node.args = (dict(outputs),)
    node.meta[IO_META] = dict(io)


def finish(gm: fx.GraphModule) -> None:
    """Drop dead nodes and check the graph's form."""
    drop_dead(gm.graph)
    gm.graph.lint()


def drop_dead(graph: fx.Graph) -> None:
    """Erase what no output needs; inputs stay. To torch, sdpa has an effect (it might draw dropout)."""
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))


def insert(
    graph: fx.Graph,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    name: str,
    kwargs: Mapping[str, Any] | None = None,
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
        result = node.graph.graph_copy(traced.graph, mapping)
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
