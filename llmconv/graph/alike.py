"""Nodes that do the same to different numbers, as those of each head do, found so that one op can do it to all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import fx

from llmconv.graph.model import aten, shape_of
from llmconv.graph.ops import ELEMENTWISE, REQUANTIZE

LARGE = 1 << 22  # bytes of a joined result: beyond, an op takes longer than to call it, and one head needs less memory
_SUMS = {aten.conv2d.default, aten.matmul.default}  # whose order of summing goes by shapes and threads
_ANY_AXIS = ELEMENTWISE | {REQUANTIZE, aten.alias.default}
_ONE_AXIS = {aten.cat.default, aten.slice.Tensor, aten.softmax.int, aten.squeeze.dim, aten.unsqueeze.default}


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes whose results are one value, joined along dimension 0.

    Attributes:
        nodes: in the order in which their results are joined.
        joined: whether the op of the first on joined operands gives that value, for a product of one token with several
            weights in another shape (`calls`); else each runs by itself.
    """

    nodes: tuple[fx.Node, ...]
    joined: bool = True


Value = fx.Node | Group | tuple[fx.Node, ...]  # tuple: several that are not one value


def groups_of(graph: fx.Graph, mark: Callable[[fx.Node], Hashable]) -> dict[fx.Node, Group]:
    """The groups of a graph, by their nodes.

    Nodes are alike where the same op, with the same constants, has operands that are alike or the same; it begins with
    slices of one value along dimension 0, such as the rows of each head in a weight.

    Args:
        mark: what else nodes that are alike must have in common.
    """
    kinds: dict[tuple[object, ...], int] = {}
    kind: dict[fx.Node, int] = {}
    alike: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        kind[node] = kinds.setdefault((mark(node), *_key(node, kind)), len(kinds))
        alike.setdefault(kind[node], []).append(node)
    groups: dict[fx.Node, Group] = {}
    place: dict[fx.Node, int] = {}
    for nodes in alike.values():  # operands before what is computed from them
        order = {node: _order(node, place) for node in nodes}
        nodes.sort(key=order.__getitem__)
        place |= {node: i for i, node in enumerate(nodes)}
        if len(nodes) > 1 and len(set(order.values())) == len(nodes):
            group = _group(tuple(nodes), groups)
            groups |= dict.fromkeys(nodes, group) if group else {}
    return groups


def operands(nodes: tuple[fx.Node, ...], groups: Mapping[fx.Node, Group]) -> list[Value]:
    """What nodes that are alike take at each place: one value for all, a group's joined one, or one each."""
    return [_together(column, groups) for column in zip(*map(operands_of, nodes), strict=True)]


def operands_of(node: fx.Node) -> list[fx.Node]:
    """A node's operands as often as its arguments name them."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def rows_of(nodes: Sequence[fx.Node]) -> slice | None:
    """The rows of a value that nodes are, where they are slices of it along dimension 0 that follow each other."""
    found = [rows for node in nodes if (rows := _rows(node)) is not None]
    if len(found) < len(nodes) or any(a[1] != b[0] for a, b in pairwise(found)):
        return None
    return slice(found[0][0], found[-1][1])


def _key(node: fx.Node, kind: Mapping[fx.Node, int]) -> tuple[object, ...]:
    if node.op != "call_function" or "val" not in node.meta or isinstance(node.meta["val"], list | tuple):
        return (node,)
    if (rows := _rows(node)) is not None:
        return (node.args[0], rows[1] - rows[0])
    constants = fx.map_arg((node.args, node.kwargs), lambda n: f"#{kind[n]}")
    return (node.target, str(constants), shape_of(node))


def _rows(node: fx.Node) -> tuple[int, int] | None:
    """The rows of a slice along dimension 0: the first, and the one behind the last."""
    if node.target is not aten.slice.Tensor or len(node.args) != 4 or node.args[1] != 0:
        return None
    start = node.args[2]
    if not isinstance(start, int) or start < 0 or "val" not in node.meta:
        return None
    return start, start + shape_of(node)[0]


def _order(node: fx.Node, place: Mapping[fx.Node, int]) -> tuple[int, ...]:
    return _rows(node) or tuple(place[n] for n in operands_of(node))


def _together(column: tuple[fx.Node, ...], groups: Mapping[fx.Node, Group]) -> Value:
    if len(set(column)) == 1:
        return column[0]
    group = groups.get(column[0])
    return group if group is not None and group.nodes == column else column


def _group(nodes: tuple[fx.Node, ...], groups: Mapping[fx.Node, Group]) -> Group | None:
    """Nodes that are alike as a group, where their results can be joined."""
    node, shape = nodes[0], shape_of(nodes[0])
    if not shape or (prod(shape) * len(nodes) * 4 > LARGE and not _is_view(node)):
        return None
    if _rows(node) is not None:
        return Group(nodes) if rows_of(nodes) is not None else None
    taken = operands(nodes, groups)
    joined = [value for value in taken if isinstance(value, Group)]
    shared = [value for value in taken if isinstance(value, fx.Node)]
    if node.target in _SUMS:
        return Group(nodes, joined=_of_one_token(node, taken))
    if not joined or len(joined) + len(shared) < len(taken) or not _joins(node, taken, joined, shared):
        return None
    return Group(nodes)


def _of_one_token(node: fx.Node, taken: list[Value]) -> bool:
    """Whether products are of one row, so that each number is a sum of its own, however many there are."""
    shape = shape_of(node)
    if node.target is aten.matmul.default:  # of (1, ..., 1, K) and (1, ..., K, N)
        alike = all(len(shape_of(operand)) == len(shape) for operand in operands_of(node))
        return alike and set(shape[:-1]) == {1} and isinstance(taken[0], Group)
    whole = isinstance(taken[0], fx.Node) and all(isinstance(value, Group) and value.joined for value in taken[1:])
    return whole and shape[0] == 1 and set(shape[2:]) <= {1} and node.args[6:] in ((), (1,))


def _is_view(node: fx.Node) -> bool:
    return _rows(node) is not None or node.target in (aten.unsqueeze.default, aten.squeeze.dim)


def _joins(node: fx.Node, taken: list[Value], joined: list[Group], shared: list[fx.Node]) -> bool:
    """Whether an op on operands of which some are joined gives the joined results."""
    shape, target = shape_of(node), node.target
    first = shape_of(joined[0].nodes[0])
    if target is aten.rms_norm.default:
        return taken[:1] == joined and len(node.args[1]) < len(shape)  # type: ignore[arg-type]
    if target in _ANY_AXIS:
        same = all(shape_of(g.nodes[0])[:1] == shape[:1] and len(shape_of(g.nodes[0])) == len(shape) for g in joined)
        return same and all(len(shape_of(n)) < len(shape) or shape_of(n)[0] == 1 for n in shared)
    if shared:
        return False
    if target is aten.permute.default:
        return int(node.args[1][0]) % len(first) == 0  # type: ignore[arg-type, index]
    axis = node.args[1] if len(node.args) > 1 else 0
    ranks = max(len(first), len(shape))
    return target in _ONE_AXIS and isinstance(axis, int) and axis % ranks != 0
