"""Edit a graph: insert ops and inputs, copy it, change the outputs, drop what is dead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

from llmconv.errors import PassError
from llmconv.graph.model import IO, IO_META, NAME, output_node


def graph_module(root: nn.Module | dict[str, Any], graph: fx.Graph) -> fx.GraphModule:
    """A module around a graph, with what the graph refers to: of `root`, or by name in it.

    The module's Python code is generated when something calls it or reads the code, which the interpreter never does:
    for tens of thousands of nodes it takes seconds.
    """
    return _LazyGraphModule(root, graph)


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
    """Erase what no output needs; inputs stay. (torch's own elimination keeps sdpa, and lints the graph first.)"""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


class _Values:
    """What was inferred for a graph and its copies."""

    def __init__(self) -> None:
        self.made: dict[Any, tuple[Any, Any]] = {}  # by op and forms of arguments: the op, which must live; its value
        self.forms: dict[Any, int] = {}  # by shape, stride and dtype; a number is quicker to compare
        self.seen: dict[int, tuple[torch.Tensor, int]] = {}  # by identity, which is a value's as long as it is held

    def form(self, value: torch.Tensor) -> int:
        """The number of all values of this shape, stride and dtype."""
        found = self.seen.get(id(value))
        if found is None:
            form = self.forms.setdefault(_form(value), len(self.forms))
            found = self.seen[id(value)] = value, form
        return found[1]


_VALUES = "_llmconv_values"  # a graph's attribute, which its deep copies do not have


def copy_of(graph: fx.Graph) -> fx.Graph:
    """An empty graph for copies of a graph's nodes."""
    copy = fx.Graph()
    vars(copy)[_VALUES] = _values_of(graph)
    return copy


def _values_of(graph: fx.Graph) -> _Values:
    found: _Values | None = vars(graph).get(_VALUES)
    if found is None:
        found = vars(graph)[_VALUES] = _Values()
    return found


def insert(
    graph: fx.Graph,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    name: str,
    kwargs: Mapping[str, Any] | None = None,
) -> fx.Node:
    """Insert one op at the graph's insert point, with `meta["val"]` inferred and its structural name given.

    Like nodes of a graph (same op, constants, shapes) share one value, since layers and heads are alike.
    """
    return insert_as(_fx_name(target), graph, target, args, name, kwargs or {})


def insert_as(
    fx_name: str,
    graph: fx.Graph,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    name: str,
    kwargs: Mapping[str, Any],
) -> fx.Node:
    """As `insert`, with what fx is to call the node, which it makes unique."""
    node = graph.create_node("call_function", target, name=fx_name)
    _set_arguments(node, args, kwargs)
    node.meta[NAME] = name
    node.meta["val"] = inferred(node)
    return node


@cache
def _fx_name(target: Callable[..., Any]) -> str:
    """What fx may call the nodes of an op; it would spell it out anew for each."""
    return re.sub(r"\W", "_", target.__name__)


def _set_arguments(node: fx.Node, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Give a node that has none its arguments.

    `create_node` would search them for symbolic numbers, and a plain assignment would file the node anew in the graph's
    table of ops, which goes by the op alone: for tens of thousands of nodes each takes seconds.
    """
    object.__setattr__(node, "args", args)
    if kwargs:
        object.__setattr__(node, "kwargs", dict(kwargs))


def inferred(node: fx.Node) -> Any:
    """What a node's op gives for the values of its arguments; like nodes of a graph share it."""
    values = _values_of(node.graph)
    args, kwargs = node.args, node.kwargs
    of_args = tuple([signature(x, values.form) for x in args])
    key = (id(node.target), of_args, signature(kwargs, values.form) if kwargs else ())
    found = values.made.get(key)
    if found is None:
        given, named = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        found = values.made[key] = node.target, node.target(*given, **named)  # type: ignore[operator]
    return found[1]


def copy_node(graph: fx.Graph, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """Copy a node of another graph to the insert point; `copies` holds the copies of its arguments.

    As `fx.Graph.node_copy`, which takes twice as long because it searches arguments for symbolic numbers.
    """
    copy = graph.create_node(node.op, node.target, name=node.name, type_expr=node.type)
    _set_arguments(copy, *fx.map_arg((node.args, node.kwargs), copies.__getitem__))
    copy.meta.update(node.meta)
    return copy


def copy_part(part: fx.GraphModule) -> fx.GraphModule:
    """A part that may be changed while the other stays; they share values, and weights without data."""
    graph = copy_of(part.graph)
    copies: dict[fx.Node, fx.Node] = {}
    for node in part.graph.nodes:
        copies[node] = copy_node(graph, node, copies)
    return graph_module(part, graph)


def insert_input(graph: fx.Graph, name: str, like: torch.Tensor, shape: Iterable[int], io: IO) -> fx.Node:
    """Append a float32 input after the inputs that exist."""
    last = graph.find_nodes(op="placeholder")[-1]
    with graph.inserting_after(last):
        node = graph.placeholder(name)
    node.target = name
    node.meta |= {NAME: name, IO_META: io, "val": like.new_empty(tuple(shape), dtype=torch.float32)}
    return node


def insert_weight(part: fx.GraphModule, name: str, shape: Iterable[int]) -> fx.Node:
    """Insert a weight at the insert point of the part's graph; the model's store has it by this name.

    A pass names one that the store lacks in a table of its own:
    `model.weights = Derived(model.weights, {name: expression})`.

    Raises:
        PassError: the graph has a value of that name.
    """
    nodes = part.graph.nodes
    if any(node.meta.get(NAME) == name for node in nodes):
        raise PassError(f"weight '{name}' is to be inserted, but the graph has a value of that name")
    *path, last = name.split(".")
    module: nn.Module = part
    for word in path:
        if word not in dict(module.named_children()):
            module.add_module(word, nn.Module())
        module = module.get_submodule(word)
    shape = tuple(shape)
    module.register_parameter(last, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))
    node = part.graph.get_attr(name)
    like = next(n.meta["val"] for n in nodes if isinstance(n.meta.get("val"), torch.Tensor))
    node.meta |= {NAME: name, "val": like.new_empty(shape, dtype=torch.float32)}
    return node


def _form(value: torch.Tensor) -> Any:
    return value.shape, value.stride(), value.dtype


def signature(argument: Any, form: Callable[[torch.Tensor], Any] = _form) -> Any:
    """What the result of an op can depend on, of one argument, hashable."""
    kind = type(argument)
    if kind is fx.Node:
        value = argument.meta["val"]
        return form(value) if isinstance(value, torch.Tensor) else signature(value, form)
    if kind in _SINGLE:
        return kind, argument  # 1 == 1.0 == True, yet they give different dtypes
    if isinstance(argument, list | tuple):
        return tuple([signature(x, form) for x in argument])
    if isinstance(argument, dict):
        return tuple([(key, signature(x, form)) for key, x in argument.items()])
    if isinstance(argument, torch.Tensor):
        return form(argument)
    return kind, argument


_SINGLE = {int, float, bool, type(None)}  # most constants of ops: to know them saves half of the time


def nodes_between(start: Iterable[fx.Node], part: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes that depend on any of `start`, in order, without `start` itself."""
    reached = set(start)
    for node in part.graph.nodes:
        if node not in reached and any(i in reached for i in node.all_input_nodes):
            reached.add(node)
            yield node


def ancestors_of(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that any of `nodes` depends on, and they themselves."""
    found = set(nodes)
    todo = list(found)
    while todo:
        for parent in todo.pop().all_input_nodes:
            if parent not in found:
                found.add(parent)
                todo.append(parent)
    return found
