"""Structural names: what makes a value of one graph the same value of another, and readable to a person."""

import re

import pytest
from tiny_models import AR, CONTEXT, LAYERS, STRUCTURAL, tried
from torch import fx

from llmconv.graph import Graph, name_of, shape_of
from llmconv.graph.model import op_name

WITH_PAST = ("prompt", AR, CONTEXT)
WITHOUT_PAST = ("prompt", CONTEXT, CONTEXT)
TOKEN = ("token", 1, CONTEXT)


def pair(prompt: tuple[str, int, int], bias: bool = False) -> tuple[Graph, Graph]:
    graphs = tried(*STRUCTURAL, bias=bias, graphs=(prompt, TOKEN)).model.graphs
    return graphs["prompt"], graphs["token"]


def by_name(graph: Graph) -> dict[str, fx.Node]:
    return {name_of(n): n for n in every(graph)}


def every(graph: Graph) -> list[fx.Node]:
    return [n for n in graph.parts[0].graph.nodes if n.op != "output"]


def like(a: fx.Node, ar_a: int, b: fx.Node, ar_b: int) -> bool:
    """Whether shapes agree, but for axes as long as the tokens read and the past kept by each graph."""
    lengths = {(ar_a, ar_b), (CONTEXT - ar_a, CONTEXT - ar_b)}
    same_rank = len(shape_of(a)) == len(shape_of(b))
    return same_rank and all(x == y or (x, y) in lengths for x, y in zip(shape_of(a), shape_of(b), strict=True))


@pytest.mark.parametrize("prompt", [WITH_PAST, WITHOUT_PAST])
@pytest.mark.parametrize("bias", [False, True])
def test_every_name_is_unique_in_its_graph(prompt: tuple[str, int, int], bias: bool) -> None:
    for graph in pair(prompt, bias):
        assert len(by_name(graph)) == len(every(graph)) > 100


@pytest.mark.parametrize("prompt", [WITH_PAST, WITHOUT_PAST])
def test_a_name_common_to_both_graphs_is_the_same_op_and_shape_up_to_tokens(prompt: tuple[str, int, int]) -> None:
    a, b = pair(prompt)
    first, second = by_name(a), by_name(b)
    common = first.keys() & second.keys()
    assert len(common) > 200
    for name in common:
        assert op_name(first[name]) == op_name(second[name]) or first[name].op == "placeholder", name
        assert first[name].op == second[name].op, name
        assert like(first[name], a.ar, second[name], b.ar), name


def test_two_graphs_with_a_past_have_the_same_names() -> None:
    prompt, token = pair(WITH_PAST)
    assert by_name(prompt).keys() == by_name(token).keys()


def test_names_of_one_graph_alone_are_exactly_the_past_and_its_concats() -> None:
    prompt, token = (by_name(graph) for graph in pair(WITHOUT_PAST))
    assert prompt.keys() <= token.keys()
    heads = ("", ".h0", ".h1")
    past = {f"past_{what}_{layer}_in{h}" for what in ("key", "value") for layer in range(LAYERS) for h in heads}
    concats = {
        f"layers.{layer}.self_attn.{what}.h{g}"
        for what in ("keys", "values")
        for layer in range(LAYERS)
        for g in (0, 1)
    }
    assert token.keys() - prompt.keys() == past | concats
    assert {op_name(token[name]) for name in concats} == {"cat"}


def test_names_say_the_module_the_op_and_the_head() -> None:
    names = by_name(pair(WITH_PAST)[1]).keys()
    assert {
        "layers.1.self_attn.q_proj.h3",
        "layers.1.self_attn.q_proj.weight.h3",
        "layers.1.self_attn.k_rope.cat.h1",
        "layers.1.self_attn.sdpa.h3.softmax",
        "layers.0.mlp.act.sigmoid",
        "layers.0.input_layernorm",
        "layers.0.add_1",
        "embed_tokens",
        "lm_head.weight",
        "past_key_0_out",
    } <= names


def test_no_name_is_fx_s_own() -> None:
    own = re.compile(r"^(layers\.\d+|embed_tokens|norm|lm_head)(\.|$)|^(past_(key|value)_\d+_(in|out))(\.h\d+)?$")
    hosts = {"input_ids", "attention_mask", "position_ids_cos", "position_ids_sin"}
    for graph in pair(WITH_PAST, bias=True):
        for name, node in by_name(graph).items():
            assert name in hosts or own.match(name), name
            assert not re.search(r"_default|_tensor|_(int|dim)(_\d+)?$", name), name
            assert name != node.name or node.op == "placeholder" or name in ("norm", "lm_head", "embed_tokens"), name
