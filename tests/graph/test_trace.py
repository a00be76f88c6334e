"""Tracing: names by place, shapes on every node, weights without data, roles kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_graphs import VOCABULARY, WIDTH, TinyCausal, tiny_causal
from torch import Tensor, fx, nn

from llmconv import PassError
from llmconv.graph import (
    IO,
    IO_META,
    ROLE,
    Graph,
    Model,
    aten,
    evaluate,
    finish,
    inputs_of,
    io_of,
    is_weight,
    name_of,
    output_node,
    outputs_of,
    set_outputs,
    shape_of,
    trace,
    trace_at,
)
from llmconv.passes import PassManager
from llmconv.weights import DictStore
from llmconv_plugins.passes import KVCacheIO

AR, CONTEXT = 3, 8


@pytest.fixture(scope="module")
def graph() -> Graph:
    """The tiny module, traced once; tests of this file look and change nothing."""
    return trace(tiny_causal(), AR, CONTEXT, "prompt")


@pytest.fixture(scope="module")
def nodes(graph: Graph) -> dict[str, fx.Node]:
    return {name_of(n): n for n in graph.parts[0].graph.nodes if n.op != "output"}


def test_one_part_of_the_asked_size(graph: Graph) -> None:
    assert (graph.name, graph.ar, graph.context, len(graph.parts), graph.rope) == ("prompt", AR, CONTEXT, 1, {})
    assert graph.label(0) == "prompt_ar3_cl8_1_of_1"
    assert replace(graph, name="prompt32of8").label(0) == "prompt_ar3_cl8_1_of_1"  # GenieX reads letters there


def test_inputs_and_outputs(graph: Graph) -> None:
    (part,) = graph.parts
    assert io_of(part) == (
        {"input_ids": IO("input_ids"), "position_ids": IO("position_ids")},
        {"logits": IO("logits")},
    )
    assert [shape_of(n) for n in inputs_of(part).values()] == [(1, AR)] * 2
    assert shape_of(outputs_of(part)["logits"]) == (1, AR, VOCABULARY)


def test_names_are_unique(graph: Graph, nodes: dict[str, fx.Node]) -> None:
    assert len(nodes) == len(graph.parts[0].graph.nodes) - 1


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("embed", aten.embedding.default),  # the only op of its module has the module's name
        ("head", aten.linear.default),
        ("blocks.0.qkv", aten.linear.default),
        (
            "blocks.0.sdpa",
            aten.scaled_dot_product_attention.default,
        ),  # one op of several: the module's name and its own
        ("blocks.0.cat", aten.cat.default),
        ("blocks.0.cat_1", aten.cat.default),
        ("add", aten.add.Tensor),  # of the root
    ],
)
def test_names_say_where_a_node_stands(nodes: dict[str, fx.Node], name: str, target: torch._ops.OpOverload) -> None:
    assert nodes[name].target is target


def test_names_do_not_depend_on_the_number_of_tokens(nodes: dict[str, fx.Node]) -> None:
    token = trace(tiny_causal(), 1, CONTEXT, "token")
    assert [name_of(n) for n in token.parts[0].graph.nodes if n.op != "output"] == list(nodes)


def test_every_node_has_its_value(nodes: dict[str, fx.Node]) -> None:
    assert all("val" in n.meta for n in nodes.values())
    assert shape_of(nodes["blocks.0.sdpa"]) == (1, 2, AR, 4)


def test_weights_have_no_data(graph: Graph, nodes: dict[str, fx.Node]) -> None:
    parameters = {name for name, _ in tiny_causal().named_parameters()}
    assert {name for name, n in nodes.items() if n.op == "get_attr"} == parameters
    assert all(tensor.is_meta for tensor in graph.parts[0].state_dict().values())
    assert all(is_weight(nodes[name]) for name in parameters)
    assert not is_weight(nodes["head"])


def test_each_weight_stands_before_its_first_use(graph: Graph) -> None:
    order = list(graph.parts[0].graph.nodes)
    for node in order:
        if node.op == "get_attr":
            assert order[order.index(node) + 1] in node.users


def test_rotary_keeps_its_roles_and_loses_its_marks(graph: Graph, nodes: dict[str, fx.Node]) -> None:
    roles = {n.meta[ROLE]: n for n in nodes.values() if ROLE in n.meta}
    assert {role: n.target for role, n in roles.items()} == {
        "rope_cos": aten.cos.default,
        "rope_sin": aten.sin.default,
    }
    assert not [n for n in nodes.values() if n.target is torch.ops.llmconv.mark.default]


def test_no_node_is_bound_to_the_meta_device(nodes: dict[str, fx.Node]) -> None:
    assert not [n for n in nodes.values() if "device" in n.kwargs]


def test_the_module_is_left_as_it_was() -> None:
    module = tiny_causal()
    trace(module, 7, 7, "alone")  # a length that nothing else traces
    assert not module.rotary._forward_hooks


def test_module_without_rotary_is_traced_and_a_pass_that_needs_its_table_says_so() -> None:
    class Plain(TinyCausal):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Embedding(8, WIDTH)
            del self.rotary

        def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
            x = self.embed(input_ids) + self.positions(position_ids)
            return self.head(F.scaled_dot_product_attention(x, x, x, is_causal=True))

    with torch.device("meta"):
        graph = trace(Plain(), 1, 4, "token")
    assert {n.meta.get(ROLE) for n in graph.parts[0].graph.nodes} == {None}
    with pytest.raises(PassError, match=r"computes no rope_cos; its rotary embedding has no submodule 'rotary'"):
        PassManager([KVCacheIO()]).run(Model({"token": graph}, DictStore({}), None))


class Several(nn.Module):
    """Nothing of a decoder: two inputs, two outputs, and a layer by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 4)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        y = self.inner(x) * scale
        return y, y.relu()


def test_any_module_is_traced_at_inputs_of_its_own() -> None:
    module = Several()
    weights = DictStore({name: value.detach() for name, value in module.named_parameters()})
    x, scale = torch.linspace(-1, 1, 18).reshape(3, 6), torch.tensor(2.0)
    graph = trace_at(module.to("meta"), {"x": x, "scale": scale}, "several")
    (part,) = graph.parts
    assert {name: shape_of(n) for name, n in inputs_of(part).items()} == {"x": (3, 6), "scale": ()}
    assert [name_of(n) for n in part.graph.nodes if n.op == "call_function"] == ["inner", "mul", "relu"]
    assert {io.kind for side in io_of(part) for io in side.values()} == {"hidden"}
    found = evaluate(part, {"x": x, "scale": scale}, weights)
    expected = 2 * F.linear(x, weights.read("inner.weight"), weights.read("inner.bias"))
    torch.testing.assert_close(found, {"output": expected, "output_1": expected.relu()})


def test_modules_that_equal_one_another_are_traced_once_and_their_graphs_are_not_the_same() -> None:
    first, second = (trace(tiny_causal(), 5, 5, name) for name in ("first", "second"))
    kept = [n.name for n in second.parts[0].graph.nodes]
    assert [n.name for n in first.parts[0].graph.nodes] == kept
    set_outputs(first.parts[0], {}, {})
    finish(first.parts[0])
    first.parts[0].register_parameter("more", nn.Parameter(torch.empty(1, device="meta")))
    for graph in (second, trace(tiny_causal(), 5, 5, "third")):
        assert [n.name for n in graph.parts[0].graph.nodes] == kept
        assert list(output_node(graph.parts[0]).meta[IO_META]) == list(outputs_of(graph.parts[0])) == ["logits"]
        assert "more" not in dict(graph.parts[0].named_parameters())


class Scaled(TinyCausal):
    """Another number than its weights' shapes could tell."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return super().forward(input_ids, position_ids) * self.factor


def test_a_module_that_computes_something_else_has_a_trace_of_its_own() -> None:
    def factors(module: nn.Module) -> list[object]:
        nodes = trace(module, 5, 5, "g").parts[0].graph.find_nodes(op="call_function", target=aten.mul.Tensor)
        return [n.args[1] for n in nodes if isinstance(n.args[1], float)]

    with torch.device("meta"):
        one, other = Scaled(2.0), Scaled(3.0)
    assert (factors(one), factors(other)) == ([2.0], [3.0])
    one.factor = 4.0
    assert factors(one) == [4.0]
