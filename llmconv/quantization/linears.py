"""Which value each weight is multiplied with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from llmconv.graph.model import aten, name_of, shape_of
from llmconv.graph.ops import uses_of

CHANNELS = {aten.conv2d.default: 1, aten.linear.default: -1}  # the axis of the input that a weight's columns go along


@dataclass(frozen=True)
class LinearInput:
    """What a convolution or linear reads.

    Attributes:
        value: its structural name.
        stored: what a piece of the part calls it.
        axis: of the channels.
        columns: how many channels.
    """

    value: str
    stored: str
    axis: int
    columns: int

    def tokens(self, value: Tensor) -> Tensor:
        """One sample's, as (tokens, columns)."""
        return value.movedim(self.axis, -1).reshape(-1, self.columns)


def linear_inputs(part: fx.GraphModule) -> dict[str, LinearInput]:
    """By weight, of those that one value alone is multiplied with."""
    found: dict[str, LinearInput] = {}
    for weight in part.graph.find_nodes(op="get_attr"):
        read = {_input(*use) for use in uses_of(weight)}
        if len(read) == 1 and None not in read:
            found[name_of(weight)] = read.pop()  # type: ignore[assignment]
    return found


def _input(user: fx.Node, weight: fx.Node) -> LinearInput | None:
    if user.target not in CHANNELS or user.args[1] is not weight:
        return None
    value, axis = user.args[0], CHANNELS[user.target]
    assert isinstance(value, fx.Node)
    stored = str(value.target) if value.op == "placeholder" else name_of(value)
    return LinearInput(name_of(value), stored, axis, shape_of(value)[axis])
