"""The op of a node, or of nodes that are alike, as a call on the values of their operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from llmconv.graph.alike import Group, operands, operands_of, rows_of
from llmconv.graph.model import aten
from llmconv.graph.ops import REQUANTIZE

Unit = fx.Node | Group
Values = Mapping[Unit, list[Any]]  # for each of several inputs


def nodes_of(unit: Unit) -> tuple[fx.Node, ...]:
    """The nodes that a unit stands for."""
    return unit.nodes if isinstance(unit, Group) else (unit,)


def caller(unit: Unit, groups: Mapping[fx.Node, Group]) -> Callable[[Values, int], Any]:
    """A unit's op on the values of one of several inputs."""
    nodes = nodes_of(unit)
    if isinstance(unit, Group) and not unit.joined:
        calls = [_call(node, operands_of(node)) for node in nodes]
        return lambda values, i: torch.cat([call(values, i) for call in calls])
    if isinstance(unit, Group) and (rows := rows_of(nodes)) is not None:
        source = operands_of(nodes[0])[0]
        return lambda values, i: values[source][i][rows]
    taken = [value for value in operands(nodes, groups) if not isinstance(value, tuple)]
    return _call(nodes[0], taken)


def _call(node: fx.Node, taken: Sequence[Unit]) -> Callable[[Values, int], Any]:
    """A node's op on values in place of its operands; its arguments are looked through once, not for each run."""
    run: Any = _INSTEAD.get(node.target, node.target)
    args, kwargs, left = node.args, node.kwargs, iter(taken)
    if node.op == "get_attr":
        return lambda _values, _i: None
    places: list[tuple[int, Unit]] = []
    lists: list[tuple[int, list[Unit]]] = []
    for i, arg in enumerate(args):
        if isinstance(arg, fx.Node):
            places.append((i, next(left)))
        elif isinstance(arg, list | tuple) and all(isinstance(n, fx.Node) for n in arg):
            lists.append((i, [next(left) for _ in arg]))
    if list(left):  # some are named, or in a list with others

        def general(values: Values, i: int) -> Any:
            found = iter(taken)
            given, named = fx.map_arg((args, kwargs), lambda _: values[next(found)][i])
            return run(*given, **named)

        return general
    template = list(args)

    def call(values: Values, i: int) -> Any:
        found = template.copy()
        for place, unit in places:
            found[place] = values[unit][i]
        for place, units in lists:
            found[place] = [values[unit][i] for unit in units]
        return run(*found, **kwargs)

    return call


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


# requantize's own call takes longer than most ops
_INSTEAD: dict[Any, Callable[..., Any]] = {aten.conv2d.default: _convolve, REQUANTIZE: lambda x: x}
