"""Split a graph into parts at values that all later ones depend on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from llmconv.errors import PassError
from llmconv.graph.edit import copy_node, copy_of, graph_module, nodes_between, set_outputs
from llmconv.graph.model import IO, IO_META, NAME, Graph, inputs_of, io_of, name_of, output_node, outputs_of


def part_of(part: fx.GraphModule, cuts: Sequence[str]) -> dict[fx.Node, int]:
    """The part that each node belongs to, cut after the named values; nodes that do not depend on the ids have none.

    Raises:
        PassError: the graph has no input of kind input_ids.
    """
    ids = next((n for n in inputs_of(part).values() if n.meta[IO_META].kind == "input_ids"), None)
    if ids is None:
        raise PassError("the graph has no input of kind input_ids")
    after = {name: i + 1 for i, name in enumerate(cuts)}
    owner = {ids: 0}
    for node in nodes_between([ids], part):
        if node.op != "output":
            owner[node] = max(after.get(name_of(i), owner[i]) for i in node.all_input_nodes if i in owner)
    return owner


def split_graph(graph: Graph, cuts: Sequence[str]) -> None:
    """Replace a graph's one part by one more than there are cuts; output and input `hidden_state_<i>` join them.

    Args:
        cuts: structural names of values, in order, each the only one before it that anything after it depends on.

    Raises:
        PassError: the graph has no such value, or parts already.
    """
    if len(graph.parts) != 1:
        raise PassError(f"graph '{graph.name}' is split already; list the pass once")
    whole = graph.parts[0]
    named = {name_of(n): n for n in whole.graph.nodes if n.op != "output"}
    for cut in cuts:
        if cut not in named:
            raise PassError(f"graph '{graph.name}' has no value '{cut}' that the first graph is cut at")
    owner, outputs, io = part_of(whole, cuts), outputs_of(whole), io_of(whole)[1]
    parts = []
    for i in range(len(cuts) + 1):
        results = {name: node for name, node in outputs.items() if owner[node] == i}
        meanings = {name: io[name] for name in results}
        if i < len(cuts):
            results = {f"hidden_state_{i + 1}": named[cuts[i]], **results}
            meanings = {f"hidden_state_{i + 1}": IO("hidden"), **meanings}
        parts.append(_copied(whole, results, meanings, named[cuts[i - 1]] if i else None, f"hidden_state_{i}"))
    graph.parts = parts


def _copied(
    whole: fx.GraphModule,
    results: dict[str, fx.Node],
    io: dict[str, IO],
    source: fx.Node | None,
    name: str,
) -> fx.GraphModule:
    """The nodes that `results` need, back to the inputs or to `source`, which becomes the input `name`."""
    graph = copy_of(whole.graph)
    copies: dict[fx.Node, fx.Node] = {}
    if source is not None:
        copies[source] = graph.placeholder(name)
        copies[source].meta = {NAME: name_of(source), IO_META: IO("hidden"), "val": source.meta["val"]}
    for node in sorted(_needed(results, source) - copies.keys()):
        copies[node] = copy_node(graph, node, copies)
    made = {name: copies[node] for name, node in results.items()}
    graph.output(made)
    part = graph_module(whole, graph)
    output_node(part).meta[NAME] = "output"
    set_outputs(part, made, io)
    return part


def _needed(results: dict[str, fx.Node], source: fx.Node | None) -> set[fx.Node]:
    needed, todo = set(results.values()), list(results.values())
    while todo:
        node = todo.pop()
        for parent in [] if node is source else node.all_input_nodes:
            if parent not in needed:
                needed.add(parent)
                todo.append(parent)
    return needed
