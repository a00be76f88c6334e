"""Lists of lengths and contexts: which graphs they stand for, and one line where they are wrong."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llmconv import Recipe, RecipeError, Registry
from llmconv.recipe.schema import json_schema

VALUES: dict[str, Any] = {
    "model": {"source": "decoder", "checkpoint": "weights"},
    "target": {"name": "SM8550"},
    "backend": {"name": "onnx"},
}


def graphs(written: Any) -> dict[str, tuple[int, int]]:
    recipe = Recipe.from_dict({**VALUES, "graphs": written})
    return {name: (graph.ar, graph.context) for name, graph in recipe.graphs.items()}


@pytest.mark.parametrize(
    ("ar", "context", "expected"),
    [
        ([1, 32], [128], {"prompt": (32, 128), "token": (1, 128)}),
        (
            [1, 128],
            [4096, 512],
            {"prompt512": (128, 512), "token512": (1, 512), "prompt4096": (128, 4096), "token4096": (1, 4096)},
        ),
        ([1, 32, 8], [64], {"prompt32of64": (32, 64), "prompt8of64": (8, 64), "token": (1, 64)}),
        ([1], [16, 64], {"token16": (1, 16), "token64": (1, 64)}),
    ],
)
def test_each_length_with_each_context(ar: list[int], context: list[int], expected: dict[str, tuple[int, int]]) -> None:
    found = graphs({"ar": ar, "context": context})
    assert found == expected
    assert list(found) == list(expected)  # the shortest context first, and what reads most before what reads one


def test_lists_are_another_way_to_write_the_same_recipe() -> None:
    listed = Recipe.from_dict({**VALUES, "graphs": {"ar": [1, 8], "context": [16, 64]}})
    named = {f"{what}{n}": {"ar": ar, "context": n} for n in (16, 64) for what, ar in (("prompt", 8), ("token", 1))}
    assert listed == Recipe.from_dict({**VALUES, "graphs": named})
    assert Recipe.from_dict(listed.to_dict()) == listed


def test_graphs_may_be_named_as_the_lists_are() -> None:
    assert graphs({"ar": {"ar": 2, "context": 8}, "context": {"ar": 1, "context": 8}}) == {
        "ar": (2, 8),
        "context": (1, 8),
    }


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"ar": [1, 8]}, "graphs: context is missing beside the other list, e.g. context = [512, 1024]"),
        ({"ar": 1, "context": [16]}, "graphs: ar lists numbers from 1 on, e.g. ar = [1, 128], not 1"),
        ({"ar": [], "context": [16]}, "graphs: ar lists numbers from 1 on, e.g. ar = [1, 128], not []"),
        ({"ar": [1, 0], "context": [16]}, "graphs: ar lists numbers from 1 on, e.g. ar = [1, 128], not 0"),
        ({"ar": [1, True], "context": [16]}, "graphs: ar lists numbers from 1 on, e.g. ar = [1, 128], not True"),
        ({"ar": [1, 8], "context": [16, 16]}, "graphs: context names 16 twice; remove one"),
        ({"ar": [1, 32], "context": [16, 64]}, "graphs: context = 16 is below ar = 32; a graph sees at least what"),
        ({"ar": [1], "context": [16], "token": {"ar": 1, "context": 8}}, "so 'token' cannot stand beside it; write"),
        ({"a": {"ar": 1, "context": 8}, "b": {"ar": 1, "context": 8}}, "graphs: 'a' and 'b' read and see the same"),
    ],
)
def test_what_is_wrong_is_one_line(written: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        graphs(written)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_editors_know_both_ways() -> None:
    schema = Draft202012Validator(json_schema(Registry.load()))
    named = {"token": {"ar": 1, "context": 8}}
    for written, right in (
        (named, True),
        ({"ar": [1, 8], "context": [16]}, True),
        ({"ar": [0], "context": [8]}, False),
    ):
        assert schema.is_valid({**VALUES, "graphs": written}) is right
