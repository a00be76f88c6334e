"""Layers that are alike are exported once, to the graph that an export of the whole module gives."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from tiny_graphs import VOCABULARY, WIDTH, Mixer, TinyCausal
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from llmconv.graph import name_of, repeated_layers, trace

AR = 3


class Norms(nn.Module):
    """A layer of another kind, with a list of its own and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.each[0](x) * self.each[1](x) + torch.full((), 3.0, device=x.device)


class Picky(TinyCausal):
    """Looks into its layers, which a stand-in for them does not bear."""

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        logits = super().forward(input_ids, position_ids)
        return logits + self.blocks[0].qkv.weight.sum()


class Named(TinyCausal):
    """Calls its layers by names of arguments."""

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        cos, sin = self.rotary(position_ids)
        for block in self.blocks:
            x = x + block(x, sin=sin, cos=cos)
        return self.head(x)


class Unturned(TinyCausal):
    """Gives every other layer no angles."""

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        cos, sin = self.rotary(position_ids)
        for i, block in enumerate(self.blocks):
            x = x + block(x, *((cos, sin) if i % 2 else (None, None)))
        return self.head(x)


class Negated(nn.Module):
    """Turns by angles where it is given some."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        return -x * self.scale if cos is None else x * cos.sum() * self.scale


class Narrow(Mixer):
    """Gives less than it is given."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return super().forward(x, cos, sin)[..., :1]


def module_of(kind: type[TinyCausal], *layers: type[nn.Module]) -> TinyCausal:
    with torch.device("meta"):
        module = kind()
        module.blocks = nn.ModuleList(layer() for layer in layers)
    return module


def listing(module: nn.Module) -> list[tuple[Any, ...]]:
    """All that a graph is, by structural names."""

    def named(arguments: Any) -> str:
        return str(fx.map_arg(arguments, lambda n: f"%{name_of(n)}"))

    (part,) = trace(module, AR, AR, "prompt").parts
    found = [(n.op, str(n.target), named(n.args), named(n.kwargs), _form(n), _known(n)) for n in part.graph.nodes]
    return [*found, *sorted((name, tuple(p.shape)) for name, p in part.named_parameters())]


def _form(node: fx.Node) -> Any:
    values = [v for v in pytree.tree_leaves(node.meta.get("val")) if v is not None]
    return [(tuple(v.shape), v.stride(), v.dtype, v.device) for v in values]


def _known(node: fx.Node) -> dict[str, str]:
    return {key: str(value) for key, value in node.meta.items() if key.startswith("llmconv")}


def test_values_are_of_one_mode() -> None:
    """What is computed of values of two would fail, or take them for numbers."""
    (part,) = trace(module_of(TinyCausal, Mixer, Norms, Mixer), AR, AR, "prompt").parts
    values = pytree.tree_leaves([n.meta.get("val") for n in part.graph.nodes])
    assert len({v.fake_mode for v in values if v is not None}) == 1


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[type[nn.Module]]:
    """What is exported, in order; nothing is kept of earlier traces."""
    seen: list[type[nn.Module]] = []

    def export(module: nn.Module, *rest: Any, **options: Any) -> Any:
        seen.append(type(module))
        return original(module, *rest, **options)

    original = torch.export.export
    monkeypatch.setattr(torch.export, "export", export)
    monkeypatch.setattr(sys.modules["llmconv.graph.trace"], "_content", lambda _module: None)
    return seen


@pytest.mark.parametrize(
    ("kind", "layers", "exports"),
    [
        (TinyCausal, [Mixer, Norms, Mixer, Norms, Mixer], [TinyCausal, Mixer, Norms]),
        (Unturned, [Negated] * 4, [Unturned, Negated, Negated]),
        (TinyCausal, [Mixer, Norms], [TinyCausal]),  # no two are alike
        (Picky, [Mixer, Mixer], [Picky, Picky]),  # whose second is of the whole
        (Named, [Mixer, Mixer], [Named, Named]),
        (TinyCausal, [Narrow, Narrow], [TinyCausal, Narrow, TinyCausal]),
    ],
)
def test_the_graph_is_that_of_the_whole_module(
    exported: list[type[nn.Module]],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[TinyCausal],
    layers: list[type[nn.Module]],
    exports: list[type[nn.Module]],
) -> None:
    module = module_of(kind, *layers)
    children = list(module.blocks)
    found = listing(module)
    assert exported == exports
    assert list(module.blocks) == children  # the module is left as it was
    monkeypatch.setattr(repeated_layers, "_repeated", lambda _module: {})
    exported.clear()
    assert found == listing(module)
    assert len(exported) == 1


def test_layers_that_share_a_weight_are_exported_with_the_whole(exported: list[type[nn.Module]]) -> None:
    module = module_of(TinyCausal, Mixer, Mixer)
    module.blocks[1].out = module.blocks[0].out
    names = [name for name, *_ in listing(module)]
    assert len([name for name in names if name.endswith("out.weight")]) == 1
    assert exported == [TinyCausal]


def test_a_layer_that_is_used_twice_is_exported_with_the_whole(exported: list[type[nn.Module]]) -> None:
    module = module_of(TinyCausal, Mixer)
    module.blocks.append(module.blocks[0])
    assert [e for e in listing(module) if e[0] == "head.weight"] == [("head.weight", (VOCABULARY, WIDTH))]
    assert exported == [TinyCausal]
