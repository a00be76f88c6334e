"""Cut a part so that it can be run a piece at a time: where one value carries all that comes after, or as asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from itertools import accumulate

import torch
from torch import fx

from llmconv.graph.edit import ancestors_of, copy_node, graph_module, nodes_between, set_outputs
from llmconv.graph.model import IO, IO_META, NAME, inputs_of, io_of, name_of, output_node, outputs_of, value_of

Numbers = dict[fx.Node, int]  # the segment that computes a node


def segments(
    part: fx.GraphModule, after: Collection[str] = (), gives: Collection[str] = ("hidden",)
) -> list[fx.GraphModule]:
    """The pieces of a part, in order, each over the same weights; together they compute every node of it.

    Args:
        after: structural names of values that a piece ends with; none for where one value carries all.
        gives: kinds of the part's outputs that pieces give, beside what later pieces take.

    Inputs are the part's own by I/O name, the first segment has all of them, and by structural name what earlier
    segments give. Outputs are by structural name. What depends on no token (the mask, RoPE, weights) is computed in
    each segment that needs it.
    """
    number = _numbers(part, after)
    pieces = [_nodes(number, i) for i in range(max(number.values(), default=0) + 1)]
    computed = {n for n in part.graph.nodes if n.op not in ("placeholder", "output")}
    pieces[0] |= computed.difference(*pieces)
    io = io_of(part)[1]
    given_on = {node for name, node in outputs_of(part).items() if io[name].kind in gives}
    made = []
    for i, nodes in enumerate(pieces):
        taken = dict.fromkeys(inputs_of(part).values() if i == 0 else ())
        taken |= dict.fromkeys(source for n in sorted(nodes) for source in n.all_input_nodes if source not in nodes)
        onward = {n for n in nodes & number.keys() if any(number.get(user, i) > i for user in n.users)}
        given = sorted(onward | (nodes & given_on))
        made.append(_module(part, list(taken), sorted(nodes), given))
    return made


def _numbers(part: fx.GraphModule, after: Collection[str]) -> Numbers:
    """The segment of each node that depends on the tokens.

    Those on the way to the hidden states and logits are cut in order; what leaves by the side, keys and values for the
    cache, belongs to the last segment that it takes something from.
    """
    carriers = [n for n in inputs_of(part).values() if n.meta[IO_META].kind in ("input_ids", "hidden")]
    outputs, io = outputs_of(part), io_of(part)[1]
    ends = {node for name, node in outputs.items() if io[name].kind in ("hidden", "logits")}
    onward = ancestors_of(ends)
    dependent = [n for n in nodes_between(carriers, part) if n.op != "output"]
    main = [n for n in dependent if n in onward]
    asked = [i for i, node in enumerate(main) if name_of(node) in after]
    cuts = asked if after else _cuts(carriers, main, ends)
    number: Numbers = {node: bisect_left(cuts, i) for i, node in enumerate(main)}
    for node in dependent:
        if node not in number:
            number[node] = max((number[i] for i in node.all_input_nodes if i in number), default=0)
    return number


def _cuts(carriers: Sequence[fx.Node], main: Sequence[fx.Node], ends: set[fx.Node]) -> list[int]:
    """Positions in `main` after which one value alone is still needed; of neighbours, the one of the fewest bytes."""
    order = [*carriers, *main]
    position = {node: i for i, node in enumerate(order)}
    alive = [0] * (len(order) + 1)
    for i, node in enumerate(order):
        last = len(order) if node in ends else max((position[u] for u in node.users if u in position), default=i)
        alive[i] += 1
        alive[last] -= 1
    inner = range(len(carriers), len(order) - 1)
    runs: list[list[int]] = []
    for i, count in enumerate(accumulate(alive)):
        if count != 1 or i not in inner or not isinstance(order[i].meta["val"], torch.Tensor):
            continue
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return [min(run, key=lambda i: (value_of(order[i]).nbytes, i)) - len(carriers) for run in runs]


def _nodes(number: Numbers, segment: int) -> set[fx.Node]:
    """The nodes of a segment, and of those that depend on no token the ones that it needs."""
    found = {node for node, i in number.items() if i == segment}
    todo = list(found)
    while todo:
        for parent in todo.pop().all_input_nodes:
            if parent not in found and parent not in number and parent.op != "placeholder":
                found.add(parent)
                todo.append(parent)
    return found


def _module(
    part: fx.GraphModule, taken: Sequence[fx.Node], nodes: Sequence[fx.Node], given: Sequence[fx.Node]
) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in taken:
        name = str(node.target) if node.op == "placeholder" else name_of(node)
        copies[node] = graph.placeholder(name)
        copies[node].meta = {NAME: name_of(node), IO_META: IO("hidden"), "val": node.meta["val"]}
    for node in nodes:
        copies[node] = copy_node(graph, node, copies)
    graph.output({})
    made = graph_module(part, graph)
    output_node(made).meta[NAME] = "output"
    results = {name_of(node): copies[node] for node in given}
    set_outputs(made, results, dict.fromkeys(results, IO("hidden")))
    return made
