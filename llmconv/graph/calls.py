"""The op of a node, or of nodes that are alike, as a call on the values of their operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx

from llmconv.graph.alike import Group, operands, operands_of, rows_of
from llmconv.graph.model import aten, shape_of
from llmconv.graph.ops import REQUANTIZE

Unit = fx.Node | Group
Values = Mapping[Unit, list[Any]]  # for each of several inputs
Call = Callable[[Values, int], Any]


def nodes_of(unit: Unit) -> tuple[fx.Node, ...]:
    """The nodes that a unit stands for."""
    return unit.nodes if isinstance(unit, Group) else (unit,)


def caller(unit: Unit, groups: Mapping[fx.Node, Group]) -> Call:
    """A unit's op on the values of one of several inputs."""
    nodes = nodes_of(unit)
    if isinstance(unit, Group) and not unit.joined:
        calls = [_call(node, operands_of(node)) for node in nodes]
        return lambda values, i: torch.cat([call(values, i) for call in calls])
    found = operands(nodes, groups)
    taken = [value for value in found if not isinstance(value, tuple)]
    if isinstance(unit, Group) and (rows := rows_of(nodes)) is not None:
        source = taken[0]
        return lambda values, i: values[source][i][rows]
    if isinstance(unit, Group) and nodes[0].target is aten.conv2d.default:
        convolve, shape = _call(nodes[0], taken), (len(nodes), *shape_of(nodes[0])[1:])
        return lambda values, i: convolve(values, i).reshape(shape)
    if isinstance(unit, Group) and isinstance(found[-1], tuple):
        return _products(taken[0], found[-1])
    return _call(nodes[0], taken)


def _products(rows: Unit, matrices: Sequence[fx.Node]) -> Call:
    """Row by matrix for each of several rows, of which some that follow each other have the same matrix."""
    steps: list[tuple[fx.Node, slice]] = []
    for matrix, same in groupby(matrices):
        start = steps[-1][1].stop if steps else 0
        steps.append((matrix, slice(start, start + len(list(same)))))

    def call(values: Values, i: int) -> Tensor:
        row = values[rows][i]
        return torch.cat([torch.matmul(row[some], values[matrix][i]) for matrix, some in steps])

    return call


def _call(node: fx.Node, taken: Sequence[Unit]) -> Call:
    """A node's op on values in place of its operands; its arguments are looked through once, not for each run."""
    run: Any = _INSTEAD.get(node.target, node.target)
    args, kwargs = node.args, node.kwargs
    if node.op == "get_attr":
        return lambda _values, _i: None
    lists = [arg for arg in args if isinstance(arg, list | tuple)]
    if _nodes_in((lists, kwargs)):
        return _anywhere(run, taken, args, kwargs)
    places = [i for i, arg in enumerate(args) if isinstance(arg, fx.Node)]
    if places in ([0], [0, 1]) and not kwargs:  # most ops: nothing is unpacked for them
        return _on_first(run, taken, args[len(places) :])
    at = list(zip(places, taken, strict=True))

    def call(values: Values, i: int) -> Any:
        given = list(args)
        for place, unit in at:
            given[place] = values[unit][i]
        return run(*given, **kwargs)

    return call


def _on_first(run: Any, taken: Sequence[Unit], rest: Sequence[Any]) -> Call:
    if len(taken) == 1:
        (only,) = taken
        return lambda values, i: run(values[only][i], *rest)
    a, b = taken
    return lambda values, i: run(values[a][i], values[b][i], *rest)


def _anywhere(run: Any, taken: Sequence[Unit], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """An op with operands in a list, or named."""
    if isinstance(args[0], list | tuple) and len(args[0]) == len(_nodes_in(args[0])) == len(taken):  # a concat
        rest = args[1:]
        return lambda values, i: run([values[unit][i] for unit in taken], *rest, **kwargs)

    def call(values: Values, i: int) -> Any:
        found = iter(taken)
        given, named = fx.map_arg((args, kwargs), lambda _: values[next(found)][i])
        return run(*given, **named)

    return call


def _nodes_in(arguments: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(arguments, found.append)
    return found


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """aten.conv2d without oneDNN, which would copy each weight into a layout of its own, for a single use.

    `torch.backends.mkldnn.enabled` would keep oneDNN from it as well, but from every thread of the program.
    """
    if groups != 1 or tuple(dilation) != (1, 1):
        return aten.conv2d.default(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]
    size = weight.shape[2:]
    return aten.thnn_conv2d.default(x, weight, size, bias, stride, padding)  # type: ignore[no-any-return]


# Calls that take less time than the op itself: requantize takes longer than most ops, and torch's functions of the same
# ops need no Python in between.
_INSTEAD: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.cat.default: torch.cat,
    aten.conv2d.default: _convolve,
    aten.matmul.default: torch.matmul,
    aten.mul.Tensor: torch.mul,
    aten.permute.default: torch.permute,
    aten.sigmoid.default: torch.sigmoid,
    aten.softmax.int: torch.softmax,
    aten.squeeze.dim: torch.squeeze,
    aten.sub.Tensor: torch.sub,
    aten.unsqueeze.default: torch.unsqueeze,
    REQUANTIZE: lambda x: x,
}
