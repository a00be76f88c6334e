"""Export layers that are alike once: an op stands in each one's place, and gets the nodes of that one export."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from operator import attrgetter

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from llmconv.graph.edit import copy_node, fake_mode_of, graph_module
from llmconv.graph.model import value_of

Export = Callable[[nn.Module, tuple[Tensor | None, ...]], fx.GraphModule]


@torch.library.custom_op("llmconv::layer", mutates_args=())
def _layer(values: Sequence[Tensor | None], path: str) -> Tensor:
    """What a layer makes of its arguments, as large as the first of them; `path` is its place in the module."""
    raise NotImplementedError(path)


@_layer.register_fake
def _(values: Sequence[Tensor | None], path: str) -> Tensor:
    return torch.empty_like(values[0])  # type: ignore[arg-type]


_LAYER = torch.ops.llmconv.layer.default


class _StandIn(nn.Module):
    """A layer's place: whoever wants more of it than to call it on tensors is given an error."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, *values: Tensor | None) -> Tensor:
        return _layer(values, self.path)  # type: ignore[no-any-return]


def export_by_layer(module: nn.Module, args: tuple[Tensor, ...], export: Export) -> fx.GraphModule:
    """What `export(module, args)` gives, by one export for each kind of layer among members of a ModuleList.

    Layers are of a kind where they are written down alike, weights being on the meta device. A module that does more
    with them than to call each on tensors, for one as large as the first of these, is exported as a whole.
    """
    with suppress(Exception):  # of a module that does more with its layers; what else is wrong comes up again below
        if layers := _repeated(module):
            with _stood_in(module, layers):
                outer = export(module, args)
            return _filled(outer, layers, export)
    return export(module, args)


def _repeated(module: nn.Module) -> dict[str, tuple[bytes, nn.Module]]:
    """Layers by path, and what makes each what it is, where any two are alike and none shares a weight."""
    weights = [p for _, p in module.named_parameters(remove_duplicate=False)]
    if len(set(map(id, weights))) < len(weights) or not all(p.is_meta for p in weights):
        return {}
    lists = {path: m for path, m in module.named_modules() if isinstance(m, nn.ModuleList)}
    found = {
        f"{path}.{i}": (pickle.dumps(layer), layer)
        for path, layers in lists.items()
        if not any(path.startswith(f"{other}.") for other in lists)
        for i, layer in enumerate(layers)
    }
    counts = Counter(content for content, _ in found.values())
    return found if any(count > 1 for count in counts.values()) else {}


@contextmanager
def _stood_in(module: nn.Module, layers: Mapping[str, tuple[bytes, nn.Module]]) -> Iterator[None]:
    for path in layers:
        module.set_submodule(path, _StandIn(path))
    try:
        yield
    finally:
        for path, (_, layer) in layers.items():
            module.set_submodule(path, layer)


def _filled(outer: fx.GraphModule, layers: Mapping[str, tuple[bytes, nn.Module]], export: Export) -> fx.GraphModule:
    """The graph with each layer's own nodes in its place."""
    exports: dict[object, fx.GraphModule] = {}
    weights = {name: attrgetter(name)(outer) for name in _weights_of(outer)}
    for node in outer.graph.find_nodes(op="call_function", target=_LAYER):
        values, path = node.args
        content, layer = layers[path]
        given = [None if v is None else value_of(v) for v in values]
        key = content, *(None if v is None else _form(v) for v in given)
        if key not in exports:
            exports[key] = _export_one(layer, given, export)
        _fill(node, exports[key], path)
        own = {name: deepcopy(attrgetter(name)(exports[key])) for name in _weights_of(exports[key])}
        weights |= {f"{path}.{name}": weight for name, weight in own.items()}
    return graph_module(weights, outer.graph)


def _weights_of(gm: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.find_nodes(op="get_attr")]


def _like(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _export_one(layer: nn.Module, given: Sequence[Tensor | None], export: Export) -> fx.GraphModule:
    """A layer's graph on values like those given, with values of their fake mode, since two do not mix."""
    gm = export(layer, tuple(None if v is None else _like(v) for v in given))
    with fake_mode_of([v for v in given if v is not None]):
        for node in gm.graph.nodes:
            if "val" in node.meta:
                node.meta["val"] = pytree.tree_map_only(Tensor, _like, node.meta["val"])
    return gm


def _fill(node: fx.Node, layer: fx.GraphModule, path: str) -> None:
    """Put copies of a layer's nodes in the place of the op that stands for it."""
    copies = dict(zip(layer.graph.find_nodes(op="placeholder"), node.args[0], strict=True))  # type: ignore[arg-type]
    (result,) = pytree.tree_leaves(layer.graph.output_node().args[0])
    if _form(value_of(result)) != _form(value_of(node)):
        raise ValueError(f"{path} gives another form than it is given")
    for inner in layer.graph.nodes:
        if inner.op in ("placeholder", "output"):
            continue
        with node.graph.inserting_before(node):
            copies[inner] = copy = copy_node(node.graph, inner, copies)
        if inner.op == "get_attr":
            copy.target = f"{path}.{inner.target}"
        copy.meta["nn_module_stack"] = {
            key: (f"{path}.{within}".rstrip("."), kind)
            for key, (within, kind) in inner.meta.get("nn_module_stack", {}).items()
        }
    node.replace_all_uses_with(copies[result])
    node.graph.erase_node(node)


def _form(value: Tensor) -> tuple[object, ...]:
    return value.shape, value.stride(), value.dtype
