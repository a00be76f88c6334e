"""Splitting a graph at values that carry all that comes after."""

from __future__ import annotations

import pytest
import torch
from tiny_graphs import VOCABULARY, WIDTH, tiny_causal

from llmconv import PassError
from llmconv.graph import IO, Graph, inputs_of, io_of, name_of, outputs_of, part_of, split_graph, trace


def traced() -> Graph:
    return trace(tiny_causal(), 4, 4, "prompt")


def test_parts_are_joined_by_hidden_states_and_hold_every_op_once() -> None:
    graph, whole = traced(), traced().parts[0]
    split_graph(graph, ["embed"])
    first, second = graph.parts
    assert list(outputs_of(first)) == ["hidden_state_1"]
    assert list(outputs_of(second)) == ["logits"]
    assert set(inputs_of(first)) == {"input_ids"}
    assert set(inputs_of(second)) == {"hidden_state_1", "position_ids"}
    joint = inputs_of(second)["hidden_state_1"]
    assert (name_of(joint), io_of(second)[0]["hidden_state_1"]) == ("embed", IO("hidden"))
    computed = [name_of(n) for part in graph.parts for n in part.graph.nodes if n.op == "call_function"]
    assert computed == [name_of(n) for n in whole.graph.nodes if n.op == "call_function"]


def test_parts_one_after_another_compute_what_the_whole_does() -> None:
    generator, graph, whole = torch.Generator().manual_seed(0), traced(), traced()
    split_graph(graph, ["embed"])
    ids = torch.randint(VOCABULARY, (1, 4), generator=generator, dtype=torch.int32)
    positions = torch.arange(4, dtype=torch.int32)[None]
    weights: dict[str, torch.Tensor] = {}

    def run(part: torch.fx.GraphModule, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        values = {node: inputs[name] for name, node in inputs_of(part).items()}
        for node in part.graph.nodes:
            if node.op == "get_attr":
                shape = node.meta["val"].shape
                values[node] = weights.setdefault(name_of(node), torch.randn(shape, generator=generator))
            elif node.op == "call_function":
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
        return {name: values[node] for name, node in outputs_of(part).items()}

    expected = run(whole.parts[0], input_ids=ids, position_ids=positions)["logits"]
    hidden = run(graph.parts[0], input_ids=ids)["hidden_state_1"]
    assert hidden.shape == (1, 4, WIDTH)
    assert torch.equal(run(graph.parts[1], hidden_state_1=hidden, position_ids=positions)["logits"], expected)


def test_nodes_without_the_ids_have_no_part_of_their_own() -> None:
    part = traced().parts[0]
    owner = {name_of(node): number for node, number in part_of(part, ["embed"]).items()}
    assert owner["embed"] == 0
    assert owner["blocks.0.qkv"] == owner["head"] == 1
    assert "position_ids" not in owner


def test_value_that_is_not_there() -> None:
    with pytest.raises(PassError, match="graph 'prompt' has no value 'nowhere'"):
        split_graph(traced(), ["nowhere"])


def test_split_twice() -> None:
    graph = traced()
    split_graph(graph, ["embed"])
    with pytest.raises(PassError, match="graph 'prompt' is split already"):
        split_graph(graph, ["embed"])
