"""Put what plain PyTorch does in the place of a node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from llmconv.errors import PassError
from llmconv.graph.edit import copy_node, signature
from llmconv.graph.model import NAME, name_of, op_name, value_of
from llmconv.graph.record import like, record

TraceCache = dict[Any, fx.Graph]


class _Replacement(nn.Module):
    """What is recorded: a callable at a node's arguments, of which those that are nodes are given."""

    def __init__(self, replacement: Callable[..., Any], leaves: Sequence[Any], spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.replacement, self.leaves, self.spec = replacement, leaves, spec

    def forward(self, **values: Tensor) -> Any:
        rest = iter(values.values())
        leaves = [next(rest) if isinstance(leaf, fx.Node) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.replacement(*args, **kwargs)


def splice(node: fx.Node, replacement: Callable[..., Any], cache: TraceCache, taken: set[str] | None = None) -> None:
    """Put the trace of `replacement(*node.args, **node.kwargs)` in the place of a node.

    New nodes are named after the one they replace: `<its name>.<op>`, the last one takes its name. Like nodes
    (same op, constants, shapes) share one trace through `cache`.

    Args:
        taken: names that the graph has already, which are given to no other node; those of the new ones are added.
    """
    taken = set() if taken is None else taken
    leaves, spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    key = (node.target, str(spec), tuple(signature(leaf) for leaf in leaves))
    if key not in cache:
        cache[key] = _traced(_Replacement(replacement, leaves, spec), [value_of(t) for t in tensors])
    traced = cache[key]
    mapping = dict(zip(traced.find_nodes(op="placeholder"), tensors, strict=True))
    with node.graph.inserting_before(node):
        for original in traced.nodes:
            if original.op not in ("placeholder", "output"):
                mapping[original] = copy_node(node.graph, original, mapping)
    result = fx.map_arg(traced.output_node().args[0], mapping.__getitem__)
    if not isinstance(result, fx.Node):
        raise PassError(f"the replacement of '{name_of(node)}' must return one tensor")
    seen: Counter[str] = Counter()
    for original in traced.nodes:
        if original.op != "call_function":
            continue
        copy = mapping[original]
        op = op_name(copy)
        while (name := f"{name_of(node)}.{op}" + (f"_{seen[op]}" if seen[op] else "")) in taken:
            seen[op] += 1  # an earlier pass has made it
        copy.meta[NAME] = name
        taken.add(name)
    if result not in tensors:
        result.meta[NAME] = name_of(node)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def _traced(replacement: _Replacement, values: Sequence[Tensor]) -> fx.Graph:
    """Each value is a tensor of its own, though nodes share them, since a trace tells arguments apart by identity."""
    return record(replacement, {f"value_{i}": like(value) for i, value in enumerate(values)}).graph
