"""Which weights stand before and behind the channels of a value: what passes that change both look for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import fx

from llmconv.graph import MOVEMENT, aten, name_of, shape_of
from llmconv.weights import Expression, Stored


def keeps_channels(node: fx.Node, rank: int) -> bool:
    """Whether rows of the stream are chosen or copied, and channels stay as they are."""
    if node.target in (aten.alias.default, aten.to.dtype):
        return True
    return node.target == aten.slice.Tensor and int(node.args[1]) % rank != rank - 1  # type: ignore[arg-type]


class Around(NamedTuple):
    """What stands around an attention.

    Attributes:
        value: the linear that makes its values; `gives` are its weight and bias.
        output: the one that reads its result; `reads` is its weight.
        heads: of queries; `groups` of keys and values; `size` of each.
    """

    value: fx.Node
    gives: list[str]
    output: fx.Node
    reads: str
    heads: int
    groups: int
    size: int


def around(sdpa: fx.Node) -> Around | None:
    """None where anything but movement stands between, or others read the values."""
    value, output = sdpa.args[2], sdpa
    heads, groups, size = shape_of(sdpa)[1], shape_of(value)[1], shape_of(value)[-1]  # type: ignore[arg-type]
    while isinstance(value, fx.Node) and value.target in MOVEMENT and len(value.users) == 1:
        (value, *others) = value.all_input_nodes
        if others:
            return None
    while len(output.users) == 1 and (output is sdpa or output.target in MOVEMENT):
        (output,) = output.users
    linears = aten.linear.default
    if not isinstance(value, fx.Node) or value.target != linears or output.target != linears or len(value.users) > 1:
        return None
    made, reads = weights_of(value), weights_of(output)
    if made is None or reads is None:
        return None
    if shape_of(value)[-1] != groups * size or shape_of(output.args[1])[1] != heads * size:  # type: ignore[arg-type]
        return None
    return Around(value, made, output, reads[0], heads, groups, size)


def weights_of(linear: fx.Node) -> list[str] | None:
    """The weight of a linear and its bias, if it has one; None where one of them is computed."""
    given = [arg for arg in linear.args[1:] if arg is not None]
    if not all(isinstance(arg, fx.Node) and arg.op == "get_attr" for arg in given):
        return None
    return [name_of(arg) for arg in given]  # type: ignore[arg-type]


@dataclass
class Table:
    """What weights become."""

    weights: dict[str, Expression] = field(default_factory=dict)

    def change(self, name: str, to: Callable[[Expression], Expression]) -> None:
        """Make something of what a weight is so far."""
        self.weights[name] = to(self.weights.get(name, Stored(name)))
