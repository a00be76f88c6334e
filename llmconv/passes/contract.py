"""What must hold of a model after every pass, whatever the pass says of itself."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from llmconv.errors import LlmconvError, PassError
from llmconv.graph.edit import finish, inferred
from llmconv.graph.model import IO, IO_META, MADE_BY, NAME, Graph, Model

Entry = tuple[Any, ...]  # of one node: itself, then all that makes it what it is


@dataclass(frozen=True)
class Snapshot:
    """A model as it was before a pass.

    Attributes:
        graphs: graph name -> the entries of each of its parts' nodes, in order.
        others: the weights, the encodings and the RoPE tables, which passes replace and do not edit.
    """

    graphs: dict[str, list[list[Entry]]]
    others: list[object]

    @classmethod
    def of(cls, model: Model) -> Snapshot:
        """Take one; it holds references and copies nothing."""
        forms: dict[int, Any] = {}
        graphs = {name: [_entries(part, forms) for part in graph.parts] for name, graph in model.graphs.items()}
        tables = (table for graph in model.graphs.values() for table in graph.rope.values())
        return cls(graphs, [model.weights, model.encodings, *tables])

    def difference(self, now: Snapshot) -> str | None:
        """Where the model differs now, or None where it does not."""
        for name in {**self.graphs, **now.graphs}:
            before, after = _flat(self.graphs.get(name, [])), _flat(now.graphs.get(name, []))
            if before != after:
                known = {entry[0]: entry for entry in before}
                fresh = [entry for entry in after if known.get(entry[0]) != entry]
                return f"graph '{name}'" + (f" at node '{_label(fresh[0][0])}'" if fresh else "")
        if self.graphs != now.graphs:
            return "the parts of a graph"
        if len(self.others) != len(now.others) or any(a is not b for a, b in zip(self.others, now.others, strict=True)):
            return "the weights, the encodings or a RoPE table"
        return None


def enforce(before: Snapshot, now: Snapshot, model: Model, name: str) -> Snapshot:
    """Finish what the pass `name` changed: drop dead nodes, stamp new ones, and check each graph.

    Returns:
        The model as it is then.

    Raises:
        PassError: what does not hold, and at which node.
    """
    finished = {}
    for graph in model.graphs.values():
        old, entries = before.graphs.get(graph.name, []), now.graphs[graph.name]
        if entries == old:
            continue
        for part in graph.parts:
            _check_outputs(part, graph)
            finish(part)
        _check_kept(old, graph)
        finished[graph.name] = entries = _of_those_alive(entries, graph.parts)
        known = {entry[0]: entry for entry in _flat(old)}
        fresh = [e[0] for e in _flat(entries) if known.get(e[0]) != e]
        _stamp(fresh, known, name)
        for node in dict.fromkeys([*fresh, *(user for n in fresh for user in n.users)]):
            _check_node(node, graph, model)
        _check_names(graph, entries, old)
    return replace(now, graphs={**now.graphs, **finished})


def _entries(part: fx.GraphModule, forms: dict[int, Any]) -> list[Entry]:
    """The entries of a part's nodes; `forms` of values by identity, many of which nodes share."""
    entries = []
    for n in part.graph.nodes:
        value = n.meta.get("val")
        if (form := forms.get(id(value))) is None:
            form = forms[id(value)] = _form(value)
        entries.append((n, n.target, n.args, n.kwargs, n.meta.get(NAME), n.meta.get(IO_META), form))
    return entries


def _of_those_alive(entries: list[list[Entry]], parts: list[fx.GraphModule]) -> list[list[Entry]]:
    alive = [set(part.graph.nodes) for part in parts]
    return [[e for e in of_part if e[0] in nodes] for of_part, nodes in zip(entries, alive, strict=True)]


def _flat(parts: list[list[Entry]]) -> list[Entry]:
    return [entry for part in parts for entry in part]


def _form(value: Any) -> Any:
    """Shape and dtype of a value, or of each that an op with many results gives."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, list | tuple):
        return [_form(v) for v in pytree.tree_leaves(value)]
    return type(value)


def _label(node: fx.Node) -> str:
    return str(node.meta.get(NAME, node.name))


def _stamp(fresh: list[fx.Node], known: dict[fx.Node, Entry], name: str) -> None:
    """Say of each new node which pass made it, and of each that now does something else.

    What was only moved to another part, or reads another value, keeps its maker.
    """
    targets: dict[Any, list[Any]] = {}  # by name: what an op's own hash takes would add up
    for entry in known.values():
        targets.setdefault(entry[4], []).append(entry[1])
    for node in fresh:
        if node not in known:
            made = node.target not in targets.get(node.meta.get(NAME), ())
        else:
            now = _written(node.target, node.args, node.kwargs)
            made = node.op == "call_function" and now != _written(*known[node][1:4])
        if made:
            node.meta[MADE_BY] = name


def _written(target: Any, args: Any, kwargs: Any) -> Any:
    """What a node does, whichever values it does it to."""
    return target, fx.map_arg((args, kwargs), lambda _node: "a value")


def _check_outputs(part: fx.GraphModule, graph: Graph) -> None:
    nodes = part.graph.find_nodes(op="output")
    if len(nodes) != 1:
        raise PassError(f"graph '{graph.name}' is left with {len(nodes)} output nodes; set_outputs replaces outputs")
    outputs, io = nodes[0].args[0], nodes[0].meta.get(IO_META)
    if not isinstance(outputs, dict) or not isinstance(io, dict) or list(outputs) != list(io):
        raise PassError(f"graph '{graph.name}': each output must say what it means; set_outputs replaces outputs")


def _check_kept(before: list[list[Entry]], graph: Graph) -> None:
    """What the graph gave to its host before, it still gives."""
    now = [io for part in graph.parts for io in _given(part.graph.output_node().meta[IO_META])]
    for io in (io for entries in before for entry in entries if entry[0].op == "output" for io in _given(entry[5])):
        if io not in now:
            layer = "" if io[1] is None else f" of layer {io[1]}"
            raise PassError(f"graph '{graph.name}' no longer gives its {io[0]}{layer}; set_outputs takes all outputs")


def _given(io: dict[str, IO]) -> list[tuple[str, int | None]]:
    return [(one.kind, one.layer) for one in io.values() if one.kind != "hidden"]


def _check_node(node: fx.Node, graph: Graph, model: Model) -> None:
    """A node has a name and a value, and the value is what its op gives."""
    if node.op == "output":
        return
    if NAME not in node.meta or "val" not in node.meta:
        raise _fault(node, graph, "has no structural name or no meta['val']; make nodes with insert")
    value = node.meta["val"]
    if node.op == "placeholder" and IO_META not in node.meta:
        raise _fault(node, graph, "an input must say what it means; make inputs with insert_input")
    if node.op == "get_attr":
        found: Any = (tuple(model.weights.shape(str(node.target))), _form(value)[1])
    elif node.op == "call_function":
        if not isinstance(node.target, torch._ops.OpOverload) and node.target is not operator.getitem:
            called = getattr(node.target, "__qualname__", node.target)
            raise _fault(node, graph, f"calls {called}, which is no ATen op; insert one of llmconv.graph.aten")
        made = _inferred(node, graph)
        if made is value:  # as insert leaves it
            return
        found = _form(made)
    else:
        return
    if found != (given := _form(value)):
        raise _fault(node, graph, f"meta['val'] says {_shown(given)}, but what runs gives {_shown(found)}")


def _fault(node: fx.Node, graph: Graph, what: str) -> PassError:
    return PassError(f"graph '{graph.name}', node '{_label(node)}': {what}")


def _inferred(node: fx.Node, graph: Graph) -> Any:
    try:
        return inferred(node)
    except LlmconvError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        why = f"its op cannot take its arguments ({type(error).__name__}: {reason})"
        raise _fault(node, graph, why) from error


def _shown(form: Any) -> str:
    if isinstance(form, tuple) and len(form) == 2:
        return f"{form[0]} {str(form[1]).removeprefix('torch.')}"
    return str(form)


def _check_names(graph: Graph, entries: list[list[Entry]], old: list[list[Entry]]) -> None:
    """No two values of a graph share a structural name, unless they did before."""
    if twice := _names_twice(entries):
        twice -= _names_twice(old)
    if twice:
        raise PassError(f"graph '{graph.name}': two values are named '{min(twice)}'; names must be unique")


def _names_twice(parts: list[list[Entry]]) -> set[str]:
    names = [entry[4] for entry in _flat(parts) if entry[0].op == "call_function" and entry[4] is not None]
    return {name for name, count in Counter(names).items() if count > 1} if len(set(names)) < len(names) else set()
