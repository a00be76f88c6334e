"""Remove and merge data movement: chains of transpose, permute, squeeze and unsqueeze, decided by axes alone.

Axes of length 1 are recognized by how they came to be (unsqueezed or squeezed), never by their length: the token
axis of a graph that reads one token has length 1 too, and like graphs must keep like nodes.
"""

from __future__ import annotations

from torch import fx

from llmconv.graph.edit import drop_dead, insert
from llmconv.graph.model import NAME, name_of, shape_of
from llmconv.graph.ops import AXES, aten

_NEW = -1  # an axis that unsqueeze made


def simplify_movement(graph: fx.Graph) -> bool:
    """Give each chain of movement its shortest form; a chain that moves nothing disappears."""
    changed = _share(graph)
    for node in list(graph.nodes):
        if node.target not in AXES:
            continue
        root, axes, length = _chain(node)
        steps = _shortest(len(shape_of(root)), axes)
        if len(steps) < length or (len(steps) == length == 1 and steps[0][0] != node.target):
            _replace(graph, node, root, steps)
            changed = True
    drop_dead(graph)
    return _share(graph) or changed


def _chain(node: fx.Node) -> tuple[fx.Node, list[int], int]:
    """The root of a chain, the root's axes in the order the node has them, and the number of steps."""
    steps = []
    while node.target in AXES:
        steps.append(node)
        node = node.args[0]  # type: ignore[assignment]
    axes = list(range(len(shape_of(node))))
    for step in reversed(steps):
        axes = _apply(step, axes)
    return node, axes, len(steps)


def _apply(step: fx.Node, axes: list[int]) -> list[int]:
    rank = len(axes)
    if step.target is aten.transpose.int:
        a, b = (int(d) % rank for d in step.args[1:3])  # type: ignore[arg-type]
        axes[a], axes[b] = axes[b], axes[a]
    elif step.target is aten.t.default:
        axes = axes[::-1]
    elif step.target is aten.permute.default:
        axes = [axes[int(d) % rank] for d in step.args[1]]  # type: ignore[arg-type, union-attr]
    elif step.target is aten.unsqueeze.default:
        axes.insert(int(step.args[1]) % (rank + 1), _NEW)  # type: ignore[arg-type]
    elif step.target in (aten.squeeze.dim, aten.squeeze.dims):
        dims = step.args[1] if isinstance(step.args[1], list | tuple) else [step.args[1]]
        lengths = shape_of(step.args[0])  # type: ignore[arg-type]
        gone = {int(d) % rank for d in dims if lengths[int(d)] == 1}  # type: ignore[arg-type]  # torch leaves longer ones
        axes = [axis for i, axis in enumerate(axes) if i not in gone]
    return axes


Step = tuple[object, tuple[object, ...]]


def _shortest(rank: int, axes: list[int]) -> list[Step]:
    """At most one squeeze, one permute and then unsqueezes that bring a root of `rank` axes into the order `axes`."""
    axes = list(axes)
    removed = [axis for axis in range(rank) if axis not in axes]
    for i, axis in enumerate(axes):
        if axis == _NEW and removed:  # an axis of length 1 is as good as another
            axes[i] = removed.pop(0)
    kept = [axis for axis in axes if axis != _NEW]
    steps: list[Step] = [(aten.squeeze.dim, (axis,)) for axis in sorted(removed, reverse=True)]
    order = [sorted(kept).index(axis) for axis in kept]
    if order != sorted(order):
        steps.append((aten.permute.default, (order,)))
    steps += [(aten.unsqueeze.default, (i,)) for i, axis in enumerate(axes) if axis == _NEW]
    return steps


def _replace(graph: fx.Graph, node: fx.Node, root: fx.Node, steps: list[Step]) -> None:
    value = root
    with graph.inserting_before(node):
        for i, (target, args) in enumerate(steps):
            name = name_of(node) if i == len(steps) - 1 else f"{name_of(node)}.{i}"
            value = insert(graph, target, (value, *args), name)  # type: ignore[arg-type]
    if steps:
        value.meta |= {k: v for k, v in node.meta.items() if k not in ("val", NAME)}
    node.replace_all_uses_with(value)
    graph.erase_node(node)


def _share(graph: fx.Graph) -> bool:
    """Let equal movements of one value share one node."""
    seen: dict[tuple[object, ...], fx.Node] = {}
    changed = False
    for node in list(graph.nodes):
        if node.target not in AXES:
            continue
        key = (node.target, node.args[0], str(node.args[1:]))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
            changed = True
        else:
            seen[key] = node
    return changed
