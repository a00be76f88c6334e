"""Which weights stand before and behind the channels of a value: what passes that change both look for."""

from __future__ import annotations

from torch import fx

from llmconv.graph import MOVEMENT, aten, name_of, shape_of


def keeps_channels(node: fx.Node, rank: int) -> bool:
    """Whether rows of the stream are chosen or copied, and channels stay as they are."""
    if node.target in (aten.alias.default, aten.to.dtype):
        return True
    return node.target == aten.slice.Tensor and int(node.args[1]) % rank != rank - 1  # type: ignore[arg-type]


def around(sdpa: fx.Node) -> tuple[list[str], str, int] | None:
    """The weight and bias that make an attention's values, the weight that reads its result, and the size of a head."""
    value, output = sdpa.args[2], sdpa
    groups, size = shape_of(value)[1], shape_of(value)[-1]  # type: ignore[arg-type]
    while isinstance(value, fx.Node) and value.target in MOVEMENT and len(value.users) == 1:
        (value, *others) = value.all_input_nodes
        if others:
            return None
    while len(output.users) == 1 and (output is sdpa or output.target in MOVEMENT):
        (output,) = output.users
    linears = aten.linear.default
    if not isinstance(value, fx.Node) or value.target != linears or output.target != linears or len(value.users) > 1:
        return None
    made, reads = [a for a in value.args[1:] if a is not None], output.args[1]
    if not all(isinstance(a, fx.Node) and a.op == "get_attr" for a in (*made, reads)):
        return None
    heads = shape_of(sdpa)[1]
    if shape_of(made[0])[0] != groups * size or shape_of(reads)[1] != heads * size:  # type: ignore[arg-type]
        return None
    return [name_of(a) for a in made], name_of(reads), size  # type: ignore[arg-type]
