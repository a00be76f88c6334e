"""Chains of data movement: shortest form, same numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from tiny_graphs import build_part
from torch import fx

from llmconv.graph import aten, evaluate, finish, insert, name_of, shape_of, simplify_movement
from llmconv.weights import DictStore

Step = tuple[Any, tuple[Any, ...]]
TRANSPOSE, PERMUTE, SQUEEZE, UNSQUEEZE = (
    aten.transpose.int,
    aten.permute.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
)


def chained(shape: Sequence[int], steps: Sequence[Step]) -> fx.GraphModule:
    """x through movements, between two relus."""

    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        value = insert(graph, aten.relu.default, (nodes["x"],), "start")
        for i, (target, args) in enumerate(steps):
            value = insert(graph, target, (value, *args), f"step{i}")
        return {"y": insert(graph, aten.relu.default, (value,), "end")}

    return build_part(body, {"x": tuple(shape)})


def movements(part: fx.GraphModule) -> list[Step]:
    return [(n.target, n.args[1:]) for n in part.graph.nodes if n.target not in (aten.relu.default, "x", "output")]


def run(part: fx.GraphModule, x: torch.Tensor) -> torch.Tensor:
    part.recompile()
    return evaluate(part, {"x": x}, DictStore({}))["y"]


@pytest.mark.parametrize(
    "steps",
    [
        [(TRANSPOSE, (0, 1)), (TRANSPOSE, (1, 0))],
        [(TRANSPOSE, (-1, -2)), (TRANSPOSE, (1, 2))],
        [(PERMUTE, ([1, 2, 0],)), (PERMUTE, ([2, 0, 1],))],
        [(UNSQUEEZE, (1,)), (SQUEEZE, (1,))],
        [(UNSQUEEZE, (-1,)), (PERMUTE, ([3, 0, 1, 2],)), (SQUEEZE, (0,))],
        [(aten.alias.default, ())],
        [(PERMUTE, ([0, 1, 2],))],
    ],
    ids=lambda steps: "-".join(str(t).split(".")[1] for t, _ in steps),
)
def test_chain_that_moves_nothing_vanishes(steps: list[Step]) -> None:
    part = chained((2, 3, 4), steps)
    assert simplify_movement(part.graph)
    finish(part)
    assert movements(part) == []


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(TRANSPOSE, (0, 1)), (TRANSPOSE, (1, 2))], [(PERMUTE, ([1, 2, 0],))]),
        ([(TRANSPOSE, (0, 1))], [(PERMUTE, ([1, 0, 2],))]),
        ([(UNSQUEEZE, (0,)), (TRANSPOSE, (0, 1))], [(UNSQUEEZE, (1,))]),
        ([(UNSQUEEZE, (0,)), (UNSQUEEZE, (0,)), (SQUEEZE, (1,))], [(UNSQUEEZE, (0,))]),
        ([(aten.alias.default, ()), (TRANSPOSE, (0, 2))], [(PERMUTE, ([2, 1, 0],))]),
    ],
)
def test_shortest_form(steps: list[Step], expected: list[Step]) -> None:
    part = chained((2, 3, 4), steps)
    assert simplify_movement(part.graph)
    assert movements(part) == expected


@pytest.mark.parametrize("steps", [[], [(PERMUTE, ([1, 0, 2],))], [(UNSQUEEZE, (0,))]])
def test_what_is_short_already_stays(steps: list[Step]) -> None:
    part = chained((2, 3, 4), steps)
    assert not simplify_movement(part.graph)
    assert movements(part) == steps


def test_squeezed_root_axis_may_come_back_elsewhere() -> None:
    part = chained((1, 3, 4), [(SQUEEZE, (0,)), (TRANSPOSE, (0, 1)), (UNSQUEEZE, (0,))])
    assert simplify_movement(part.graph)
    assert movements(part) == [(PERMUTE, ([0, 2, 1],))]


def test_the_last_node_keeps_its_name() -> None:
    part = chained((2, 3), [(TRANSPOSE, (0, 1)), (UNSQUEEZE, (0,)), (aten.alias.default, ())])
    simplify_movement(part.graph)
    found = [name_of(n) for n in part.graph.nodes if n.op == "call_function"]
    assert found[-2:] == ["step2", "end"]
    assert len(set(found)) == len(found)


def test_equal_movements_share_one_node() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        a, b = (insert(graph, PERMUTE, (nodes["x"], [1, 0]), name) for name in ("a", "b"))
        return {"y": insert(graph, aten.add.Tensor, (a, b), "sum")}

    part = build_part(body, {"x": (2, 3)})
    assert simplify_movement(part.graph)
    assert [name_of(n) for n in part.graph.nodes if n.target is PERMUTE] == ["a"]
    x = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(run(part, x), 2 * x.T)


def test_a_value_that_is_needed_on_the_way_stays() -> None:
    def body(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Mapping[str, fx.Node]:
        turned = insert(graph, PERMUTE, (nodes["x"], [1, 0]), "turned")
        back = insert(graph, PERMUTE, (turned, [1, 0]), "back")
        return {"turned": turned, "y": insert(graph, aten.relu.default, (back,), "end")}

    part = build_part(body, {"x": (2, 3)})
    assert simplify_movement(part.graph)
    assert [name_of(n) for n in part.graph.nodes if n.target is PERMUTE] == ["turned"]


def test_squeeze_of_a_longer_axis_moves_nothing() -> None:
    part = chained((2, 3), [(SQUEEZE, (0,)), (TRANSPOSE, (0, 1))])
    simplify_movement(part.graph)
    assert movements(part) == [(PERMUTE, ([1, 0],))]


def random_steps(rng: random.Random, shape: list[int]) -> list[Step]:
    """Up to eight movements that torch accepts one after the other."""
    steps: list[Step] = []
    for _ in range(rng.randint(0, 8)):
        rank, ones = len(shape), [i for i, n in enumerate(shape) if n == 1]
        kinds: list[Callable[[], Step]] = [
            lambda rank=rank: (TRANSPOSE, (rng.randrange(-rank, rank), rng.randrange(-rank, rank))),
            lambda rank=rank: (PERMUTE, ([i - rng.choice((0, rank)) for i in rng.sample(range(rank), rank)],)),
            lambda: (aten.alias.default, ()),
        ]
        if rank < 5:
            kinds.append(lambda rank=rank: (UNSQUEEZE, (rng.randrange(-rank - 1, rank + 1),)))
        if ones and rank > 1:
            kinds.append(lambda ones=ones, rank=rank: (SQUEEZE, (rng.choice(ones) - rng.choice((0, rank)),)))
            kinds.append(lambda ones=ones: (aten.squeeze.dims, (rng.sample(ones, rng.randint(1, len(ones))),)))
        if rank == 2:
            kinds.append(lambda: (aten.t.default, ()))
        target, args = rng.choice(kinds)()
        steps.append((target, args))
        shape = list(target(torch.empty(shape, device="meta"), *args).shape)
        if not shape:
            return steps[:-1]
    return steps


@pytest.mark.parametrize("seed", range(50))
def test_random_chains_compute_the_same_in_fewer_steps(seed: int) -> None:
    rng = random.Random(seed)
    shape = [rng.choice((1, 1, 2, 3)) for _ in range(rng.randint(2, 4))]
    steps = random_steps(rng, shape)
    part = chained(shape, steps)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    expected = run(part, x)
    changed = simplify_movement(part.graph)
    finish(part)
    assert torch.equal(run(part, x), expected)
    after = movements(part)
    assert changed == (after != steps)
    assert len(after) <= len(steps)
    assert sum(target in (PERMUTE, TRANSPOSE, aten.t.default) for target, _ in after) <= 1
    assert not [target for target, _ in after if target is aten.alias.default]
    assert not simplify_movement(part.graph)
    for node in part.graph.nodes:
        if node.op == "call_function":
            args = fx.map_arg(node.args, lambda n: n.meta["val"])
            assert shape_of(node) == tuple(node.target(*args).shape)
