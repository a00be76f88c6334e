"""What heads do alike is found, run as one op, and gives each head's numbers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from tiny_graphs import build_part
from torch import Tensor, fx

from llmconv.encodings import Encoding, Encodings
from llmconv.graph import aten, evaluate, insert, name_of
from llmconv.graph.alike import LARGE, groups_of
from llmconv.weights import DictStore

HEADS, SHARED, SIZE, WIDTH, TOKENS = 4, 2, 3, 5, 6
SHAPES = {"q": (HEADS * SIZE, WIDTH, 1, 1), "k": (SHARED * SIZE, WIDTH, 1, 1)}
WEIGHTS = DictStore({n: torch.randn(s, generator=torch.Generator().manual_seed(1)) for n, s in SHAPES.items()})
INPUTS = {"x": (1, WIDTH, 1, TOKENS), "cos": (1, 1, TOKENS, SIZE)}


def heads(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
    """softmax(cos * (q x)' (k x)) of each head, two heads on each k."""

    def projected(weight: str, i: int) -> fx.Node:
        rows = insert(graph, aten.slice.Tensor, (nodes[weight], 0, i * SIZE, i * SIZE + SIZE), f"{weight}.rows.h{i}")
        return insert(graph, aten.conv2d.default, (nodes["x"], rows), f"{weight}.h{i}")  # (1, D, 1, T)

    keys = [insert(graph, aten.permute.default, (projected("k", i), [0, 2, 1, 3]), f"key.h{i}") for i in range(SHARED)]
    found = []
    for i in reversed(range(HEADS)):
        query = insert(graph, aten.permute.default, (projected("q", i), [0, 2, 3, 1]), f"query.h{i}")  # (1, 1, T, D)
        turned = insert(graph, aten.mul.Tensor, (query, nodes["cos"]), f"turned.h{i}")
        scores = insert(graph, aten.matmul.default, (turned, keys[i * SHARED // HEADS]), f"scores.h{i}")
        found.insert(0, insert(graph, aten.softmax.int, (scores, -1), f"softmax.h{i}"))
    return {"y": insert(graph, aten.cat.default, (found, -1), "y"), "one": found[1]}


@pytest.fixture
def part() -> fx.GraphModule:
    return build_part(heads, INPUTS, SHAPES)


def given() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=generator) for name, shape in INPUTS.items()}


def one_by_one(part: fx.GraphModule, encodings: Mapping[str, Encoding]) -> dict[str, Tensor]:
    """Every value before it is rounded, by name."""
    values: dict[fx.Node, Tensor] = {}
    seen = {}
    for node in part.graph.nodes:
        if node.op == "output":
            continue
        known = WEIGHTS.tensors if node.op == "get_attr" else given()
        args = fx.map_arg(node.args, values.__getitem__)
        value = node.target(*args) if node.op == "call_function" else known[node.target]
        seen[name_of(node)] = value
        values[node] = encodings[name_of(node)].fake_quantize(value) if name_of(node) in encodings else value
    return seen


def names(part: fx.GraphModule) -> dict[str, tuple[list[str], bool]]:
    groups = set(groups_of(part.graph, lambda _node: None).values())
    return {name_of(g.nodes[0]).removesuffix(".h0"): ([name_of(n) for n in g.nodes], g.joined) for g in groups}


def test_heads_are_found_in_the_order_of_their_weights(part: fx.GraphModule) -> None:
    found = names(part)
    assert set(found) == {"q.rows", "k.rows", "q", "k", "query", "key", "turned", "scores", "softmax"}
    assert found["softmax"] == ([f"softmax.h{i}" for i in range(HEADS)], True)
    assert found["key"] == ([f"key.h{i}" for i in range(SHARED)], True)


def test_sums_are_made_one_by_one(part: fx.GraphModule) -> None:
    assert names(part)["scores"] == ([f"scores.h{i}" for i in range(HEADS)], False)
    assert {name for name, (_, joined) in names(part).items() if not joined} == {"scores", "q", "k"}


def test_numbers_are_those_of_each_head(part: fx.GraphModule) -> None:
    seen: dict[str, Tensor] = {}
    found = evaluate(part, given(), WEIGHTS, observer=lambda node, value: seen.update({name_of(node): value.clone()}))
    expected = one_by_one(part, {})
    assert set(seen) == {name for name in expected if ".rows" not in name and name not in WEIGHTS.tensors}
    for name, value in seen.items():
        assert torch.allclose(value, expected[name], atol=1e-6), name  # torch's own convolution sums in another order
    assert torch.allclose(found["y"], expected["y"], atol=1e-6)
    assert torch.allclose(found["one"], expected["softmax.h1"], atol=1e-6)


@pytest.mark.parametrize("few", [0, 1 << 14])
def test_each_head_is_rounded_to_its_own_grid(part: fx.GraphModule, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmconv.encodings.value.FEW", few)
    encodings = {f"turned.h{i}": Encoding(4, 0.1 * (i + 1), i) for i in range(HEADS)}
    encodings |= {f"key.h{i}": Encoding(8, 0.05, 128) for i in range(SHARED)}
    found = evaluate(part, given(), WEIGHTS, Encodings(encodings))
    assert torch.allclose(found["y"], one_by_one(part, encodings)["y"], atol=1e-6)


def test_a_head_without_an_encoding_is_not_joined_with_others(part: fx.GraphModule) -> None:
    encodings = {f"turned.h{i}": Encoding(4, 0.1, 8) for i in range(1, HEADS)}
    found = evaluate(part, given(), WEIGHTS, Encodings(encodings))
    assert torch.allclose(found["y"], one_by_one(part, encodings)["y"], atol=1e-6)


def test_large_results_are_left_apart() -> None:
    rows = LARGE // 8

    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        halves = [insert(graph, aten.slice.Tensor, (nodes["x"], 0, i, i + 1), f"half.h{i}") for i in range(2)]
        more = [insert(graph, aten.neg.default, (half,), f"neg.h{i}") for i, half in enumerate(halves)]
        return {f"y{i}": insert(graph, aten.slice.Tensor, (n, 1, 0, 2), f"y{i}") for i, n in enumerate(more)}

    assert set(names(build_part(body, {"x": (2, rows)}))) == {"half", "neg", "y0"}
    assert set(names(build_part(body, {"x": (2, rows + 1)}))) == {"half"}


OPS = {
    "along the joined axis": (aten.softmax.int, (0,)),
    "an axis in front": (aten.unsqueeze.default, (0,)),
    "the first axis moved": (aten.permute.default, ([1, 0],)),
    "a reshape": (aten.reshape.default, ([3],)),
}


@pytest.mark.parametrize("case", OPS)
def test_ops_that_look_across_heads_are_left_apart(case: str) -> None:
    target, rest = OPS[case]

    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        halves = [insert(graph, aten.slice.Tensor, (nodes["x"], 0, i, i + 1), f"half.h{i}") for i in range(2)]
        return {f"y{i}": insert(graph, target, (half, *rest), f"y.h{i}") for i, half in enumerate(halves)}

    part, x = build_part(body, {"x": (2, 3)}), torch.arange(6.0).reshape(2, 3)
    assert set(names(part)) == {"half"}
    found = evaluate(part, {"x": x}, DictStore({}))
    assert torch.equal(found["y1"], target(x[1:], *rest))


def test_what_differs_in_a_constant_is_not_alike() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        halves = [insert(graph, aten.slice.Tensor, (nodes["x"], 0, i, i + 1), f"half.h{i}") for i in range(2)]
        return {f"y{i}": insert(graph, aten.mul.Tensor, (half, i + 2.0), f"y{i}") for i, half in enumerate(halves)}

    part = build_part(body, {"x": (2, 3)})
    found = evaluate(part, {"x": torch.ones(2, 3)}, DictStore({}))
    assert {name: value.flatten().tolist() for name, value in found.items()} == {"y0": [2.0] * 3, "y1": [3.0] * 3}


def test_slices_with_a_gap_are_not_joined() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        return {
            f"y{i}": insert(graph, aten.slice.Tensor, (nodes["x"], 0, start, start + 1), f"y{i}")
            for i, start in enumerate((0, 2))
        }

    part = build_part(body, {"x": (3, 1)})
    assert names(part) == {}
    found = evaluate(part, {"x": torch.arange(3.0)[:, None]}, DictStore({}))
    assert [found[f"y{i}"].item() for i in range(2)] == [0.0, 2.0]


def of_one_token(graph: fx.Graph, nodes: dict[str, fx.Node], heads: int, shared: int) -> Mapping[str, fx.Node]:
    """Each head's projection and product of one token with a matrix, that several heads share."""
    made = []
    pasts = [insert(graph, aten.slice.Tensor, (nodes["past"], 0, i, i + 1), f"past.h{i}") for i in range(shared)]
    for i in range(heads):
        rows = insert(graph, aten.slice.Tensor, (nodes["q"], 0, i * SIZE, i * SIZE + SIZE), f"rows.h{i}")
        query = insert(graph, aten.conv2d.default, (nodes["x"], rows), f"query.h{i}")  # (1, D, 1, 1)
        flat = insert(graph, aten.permute.default, (query, [0, 2, 3, 1]), f"flat.h{i}")
        made.append(insert(graph, aten.matmul.default, (flat, pasts[i * shared // heads]), f"scores.h{i}"))
    return {"y": insert(graph, aten.cat.default, (made, -1), "y")}


@pytest.mark.parametrize(("heads", "shared"), [(4, 2), (4, 1), (4, 4), (6, 3)])
def test_one_token_is_multiplied_with_all_heads_at_once(
    heads: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 7
    shapes = {"x": (1, WIDTH, 1, 1), "past": (shared, 1, SIZE, count)}
    weights = {"q": (heads * SIZE, WIDTH, 1, 1)}
    part = build_part(lambda graph, nodes: of_one_token(graph, nodes, heads, shared), shapes, weights)
    generator = torch.Generator().manual_seed(3)
    x = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    store = DictStore({"q": torch.randn(weights["q"], generator=generator)})
    seen: dict[str, Tensor] = {}
    found = evaluate(part, x, store, observer=lambda node, value: seen.update({name_of(node): value.clone()}))["y"]
    assert {name for name, (_, joined) in names(part).items() if joined} >= {"query", "scores"}
    for i in range(heads):
        query = store.tensors["q"][i * SIZE : i * SIZE + SIZE].reshape(SIZE, WIDTH) @ x["x"].flatten()
        expected = query @ x["past"][i * shared // heads, 0]
        assert torch.allclose(seen[f"query.h{i}"].flatten(), query, atol=1e-6)
        assert torch.allclose(found.reshape(heads, count)[i], expected, atol=1e-6)
