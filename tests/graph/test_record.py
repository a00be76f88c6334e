"""Recording a module: the nodes that torch.export gives, and what cannot be recorded is exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_graphs import VOCABULARY, WIDTH, Mixer, TinyCausal, listing
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from llmconv.graph import aten, name_of
from llmconv.graph import record as recording
from llmconv.graph.record import record

TOKENS = {name: torch.zeros(1, 3, dtype=torch.int32, device="meta") for name in ("input_ids", "position_ids")}
X = {"x": torch.empty(2, WIDTH, device="meta")}


class Norms(nn.Module):
    """A layer of another kind, with a list of its own and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.each[0](x) * self.each[1](x) + torch.full((), 3.0, device=x.device)


class Several(nn.Module):
    """Ops with several results, a result that nothing needs, a conversion that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(WIDTH))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        a, *rest = (x.float() + self.offset).chunk(4, dim=-1)
        (a * 2).relu()
        return a + y, rest[1:]


class InPlace(nn.Module):
    """Writes into a value that is read before and after."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y + 1
        y.add_(3)
        return y * z


class Literal(nn.Module):
    """Makes a tensor of numbers, which no op does."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor(3.0, device=x.device)


class Broken(nn.Module):
    """Has a fault of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, WIDTH + 1)


def tiny(*layers: type[nn.Module]) -> TinyCausal:
    with torch.device("meta"):
        module = TinyCausal()
        module.blocks = nn.ModuleList(layer() for layer in layers)
    return module


def shared_layer() -> TinyCausal:
    module = tiny(Mixer)
    module.blocks.append(module.blocks[0])
    return module


def shared_weight() -> TinyCausal:
    module = tiny(Mixer, Mixer)
    module.blocks[1].out = module.blocks[0].out
    return module


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What is exported."""
    seen: list[nn.Module] = []
    original = recording._exported

    def export(module: nn.Module, inputs: Mapping[str, Tensor]) -> fx.GraphModule:
        seen.append(module)
        return original(module, inputs)

    monkeypatch.setattr(recording, "_exported", export)
    return seen


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (tiny(Mixer, Norms, Mixer), TOKENS),
        (Several().to("meta"), {**X, "y": torch.empty(2, WIDTH // 4, device="meta")}),
        (nn.Sequential(nn.Linear(WIDTH, 2, device="meta"), nn.SiLU()), {"input": X["x"]}),
    ],
)
def test_the_nodes_are_those_of_an_export(
    exports: list[nn.Module], module: nn.Module, inputs: dict[str, Tensor]
) -> None:
    recorded = record(module, inputs)
    assert exports == []
    expected = recording._exported(module, inputs)
    recording.drop_dead(expected.graph)
    assert listing(recorded) == listing(expected)


@pytest.mark.parametrize(("module", "op"), [(InPlace(), aten.add_.Tensor), (Literal(), aten.detach_.default)])
def test_what_is_not_seen_op_by_op_is_exported(exports: list[nn.Module], module: nn.Module, op: Any) -> None:
    part = record(module, X)
    assert exports == [module]
    assert [n for n in part.graph.nodes if n.target is op]
    assert all(v.is_meta for n in part.graph.nodes for v in pytree.tree_leaves(n.meta["val"]) if v is not None)


@pytest.mark.parametrize("module", [shared_layer(), shared_weight()])
def test_a_weight_of_two_names_has_the_first(module: nn.Module) -> None:
    """As in `named_parameters`; torch.export takes the last."""
    names = [n.target for n in record(module, TOKENS).graph.find_nodes(op="get_attr")]
    assert names.count("blocks.0.out.weight") == 1
    assert "blocks.1.out.weight" not in names


def test_a_fault_of_the_module_is_told_as_torch_does() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        record(Broken(), X)


def test_the_module_is_left_as_it_was() -> None:
    module = tiny(Mixer)
    record(module, TOKENS)
    assert not [m for m in module.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_an_op_is_named_after_its_module() -> None:
    part = record(tiny(Mixer, Norms), TOKENS)
    names = {name_of(n) for n in part.graph.nodes if n.op == "call_function"}
    assert {"", "embed", "rotary", "blocks.0", "blocks.0.qkv", "blocks.1.each.1", "head"} <= names


def test_results_are_not_computed() -> None:
    """A product that would take minutes, and a table larger than any memory."""
    wide = nn.Linear(1 << 20, 1 << 20, device="meta")
    part = record(wide, {"input": torch.empty(1 << 20, 1 << 20, device="meta")})
    assert part.graph.output_node().args[0].meta["val"].shape == (1 << 20, 1 << 20)


def test_a_weight_stands_before_its_first_use() -> None:
    order = list(record(shared_layer(), TOKENS).graph.nodes)
    weights = [n for n in order if n.op == "get_attr"]
    assert len(weights) == len({n.target for n in weights})
    assert all(order[order.index(n) + 1] in n.users for n in weights)
    assert weights[0].meta["val"].shape == (VOCABULARY, WIDTH)
