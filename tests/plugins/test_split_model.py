"""split_model: parts that hold whole layers, found from the graph alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import (
    AR,
    CONTEXT,
    FP32_ROUNDING,
    HIDDEN,
    SIZES,
    STRUCTURAL,
    Renamed,
    calibrated_model,
    llama,
    logits,
    samples,
    tried,
)
from torch import nn

from llmconv import PassError, RecipeError, Registry
from llmconv.graph import IO, Graph, Model, balance, inputs_of, io_of, name_of, outputs_of, shape_of
from llmconv.passes import PassManager
from llmconv.sources import Architecture
from llmconv.testing import PassTrial, try_pass
from llmconv_plugins import passes
from llmconv_plugins.passes import KVCacheIO, SplitModel
from llmconv_plugins.sources.decoder import DecoderModule

LAYERS = 3
TOKENS = {"prompt": AR, "token": 1}


def split(**options: object) -> PassTrial:
    return tried(*STRUCTURAL, SplitModel(**options), layers=LAYERS)


def layers_of(graph: Graph) -> list[set[int]]:
    """The layers whose weights each part holds."""
    return [{int(w.split(".")[1]) for w in weights if w.startswith("layers.")} for weights in weights_of(graph)]


def weights_of(graph: Graph) -> list[set[str]]:
    return [{name_of(n) for n in part.graph.nodes if n.op == "get_attr"} for part in graph.parts]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"parts": 3}, [{0}, {1}, {2}]),
        ({"parts": 2, "layers": (1, 2)}, [{0}, {1, 2}]),
        ({"layers": (2, 1)}, [{0, 1}, {2}]),
    ],
)
def test_part_i_of_every_graph_holds_the_same_layers(options: dict, expected: list[set[int]]) -> None:
    trial = split(**options)
    assert trial.report.changed
    assert max(trial.report.errors.values()) < FP32_ROUNDING
    prompt, token = (trial.model.graphs[name] for name in ("prompt", "token"))
    assert layers_of(prompt) == layers_of(token) == expected
    assert weights_of(prompt) == weights_of(token)
    assert "embed_tokens.weight" in weights_of(prompt)[0]
    assert {"norm.weight", "lm_head.weight"} <= weights_of(prompt)[-1]


def test_each_weight_lies_in_one_part_and_no_op_is_lost_or_doubled() -> None:
    trial = split(parts=3)
    for name, graph in trial.model.graphs.items():
        weights = weights_of(graph)
        assert len(set.union(*weights)) == sum(len(w) for w in weights)
        assert trial.after[name] == trial.before[name]


def test_hidden_states_leave_one_part_and_enter_the_next_in_the_same_shape() -> None:
    for name, graph in split(parts=3).model.graphs.items():
        shape = (1, HIDDEN, 1, TOKENS[name])  # tokens last, so that nothing is transposed at a boundary
        for i, (left, right) in enumerate(zip(graph.parts, graph.parts[1:], strict=False), start=1):
            out, into = outputs_of(left)[f"hidden_state_{i}"], inputs_of(right)[f"hidden_state_{i}"]
            assert shape_of(out) == shape_of(into) == shape
            assert name_of(out) == name_of(into) == f"layers.{i - 1}.add_1"  # and so they share an encoding
            assert io_of(left)[1][f"hidden_state_{i}"] == io_of(right)[0][f"hidden_state_{i}"] == IO("hidden")


def test_each_part_has_the_inputs_and_outputs_that_its_layers_need() -> None:
    host = ["attention_mask", "position_ids_cos", "position_ids_sin"]
    first, middle, last = split(parts=3).model.graphs["token"].parts
    for i, part in enumerate((first, middle, last)):
        cache = [f"past_key_{i}_in", f"past_value_{i}_in"]
        border = ["input_ids"] if i == 0 else [f"hidden_state_{i}"]
        assert sorted(inputs_of(part)) == sorted([*border, *host, *cache])
    cache = [[f"past_key_{i}_out", f"past_value_{i}_out"] for i in range(LAYERS)]
    assert list(outputs_of(first)) == ["hidden_state_1", *cache[0]]
    assert list(outputs_of(middle)) == ["hidden_state_2", *cache[1]]
    assert list(outputs_of(last)) == ["logits", *cache[2]]


def test_labels_number_the_parts() -> None:
    graph = split(parts=3).model.graphs["token"]
    assert graph.label(1) == f"token_ar1_cl{CONTEXT}_2_of_3"


def test_decoding_through_parts_equals_decoding_through_the_whole() -> None:
    whole, parts = tried(*STRUCTURAL, layers=LAYERS).model, split(parts=3).model
    (tokens,) = samples(1, 5)
    for names in (["prompt"], ["token"], ["prompt", "token"]):
        expected = logits(whole, *names, tokens=tokens)
        np.testing.assert_allclose(logits(parts, *names, tokens=tokens), expected, atol=FP32_ROUNDING, rtol=0)


@pytest.mark.parametrize(
    ("weights", "parts", "expected"),
    [
        ([1, 1, 1, 1], 2, [2, 2]),
        ([5, 1, 1, 5], 2, [2, 2]),
        ([9, 1, 1, 1], 2, [1, 3]),  # a heavy embedding
        ([1, 1, 1, 9], 3, [1, 2, 1]),  # a heavy lm_head; ties go to fewer layers first
        ([3, 1, 1, 1, 3], 3, [1, 3, 1]),
        ([2, 2], 1, [2]),
    ],
)
def test_the_heaviest_part_is_as_light_as_can_be(weights: list[int], parts: int, expected: list[int]) -> None:
    assert balance(weights, parts) == expected
    heaviest = max(sum(run) for run in _runs(weights, expected))
    assert heaviest == min(max(sum(r) for r in _runs(weights, s)) for s in _sizes(len(weights), parts))


def _runs(weights: list[int], sizes: Sequence[int]) -> list[list[int]]:
    ends = np.cumsum(sizes).tolist()
    return [weights[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _sizes(count: int, parts: int) -> list[list[int]]:
    if parts == 1:
        return [[count]]
    return [[first, *rest] for first in range(1, count - parts + 2) for rest in _sizes(count - first, parts - 1)]


class NarrowTable(DecoderModule):
    """Its embedding weighs little, unlike lm_head."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__(sizes)
        self.embed_tokens = nn.Embedding(sizes.vocabulary, 1)
        self.widen = nn.Linear(1, sizes.hidden)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        x, angles = self.widen(self.embed_tokens(input_ids)), self.rotary(position_ids)
        for layer in self.layers:
            x = layer(x, *angles)
        return self.lm_head(self.norm(x))


@pytest.mark.parametrize(("kind", "expected"), [(DecoderModule, [{0, 1}, {2, 3}]), (NarrowTable, [{0, 1, 2}, {3}])])
def test_parts_are_balanced_by_the_weights_in_them(kind: type[DecoderModule], expected: list[set[int]]) -> None:
    with torch.device("meta"):
        module = kind(replace(SIZES, layers=4, vocabulary=400))
    model = calibrated_model(module)
    PassManager([KVCacheIO(), SplitModel(parts=2)]).run(model)
    assert layers_of(model.graphs["prompt"]) == expected


def test_boundaries_are_found_whatever_the_module_calls_its_layers() -> None:
    trial = try_pass(SplitModel(parts=3), Renamed(llama(layers=LAYERS)), after=STRUCTURAL)
    assert max(trial.report.errors.values()) < FP32_ROUNDING
    for graph in trial.model.graphs.values():
        blocks = [{w.split(".")[1] for w in weights if w.startswith("blocks.")} for weights in weights_of(graph)]
        assert blocks == [{"0"}, {"1"}, {"2"}]
        assert name_of(inputs_of(graph.parts[1])["hidden_state_1"]) == "blocks.0.add_1"


def test_graphs_of_linears_are_split_with_rows_at_the_boundary() -> None:
    trial = tried(KVCacheIO(), SplitModel(parts=2))
    assert shape_of(inputs_of(trial.model.graphs["prompt"].parts[1])["hidden_state_1"]) == (1, AR, HIDDEN)
    assert max(trial.report.errors.values()) < FP32_ROUNDING


def test_one_part_is_no_change() -> None:
    trial = split(parts=1)
    assert not trial.report.changed
    assert trial.before == trial.after
    assert [len(graph.parts) for graph in trial.model.graphs.values()] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": 4}, "parts = 4, but the model has 3 layers; use 1 to 3"),
        ({"parts": 0}, "parts = 0, but the model has 3 layers"),
        ({"layers": (2, 2)}, r"layers = \[2, 2\] must be positive and add up to 3, the model"),
        ({"layers": (3, 0)}, r"layers = \[3, 0\] must be positive"),
        ({"layers": ()}, r"layers = \[\] must be positive"),
    ],
)
def test_sizes_that_do_not_fit_the_model(options: dict, message: str) -> None:
    with pytest.raises(PassError, match=message) as caught:
        run_on_plain(SplitModel(**options))
    assert "\n" not in str(caught.value)


def run_on_plain(*splits: SplitModel) -> Model:
    model = calibrated_model(llama(layers=LAYERS))
    PassManager([KVCacheIO(), *splits]).run(model)
    return model


def test_split_twice_is_an_error() -> None:
    with pytest.raises(PassError, match="the graphs are split already; list the pass once") as caught:
        run_on_plain(SplitModel(parts=2), SplitModel(parts=2))
    assert "\n" not in str(caught.value)


def test_without_a_cache_is_refused() -> None:
    with pytest.raises(PassError, match="'split_model' needs 'kv_cache_io' before it"):
        PassManager([SplitModel(parts=2)])


def test_parts_and_layers_that_contradict_each_other() -> None:
    with pytest.raises(PassError, match=r"layers = \[2, 1\] are 2 parts, but parts = 3"):
        run_on_plain(SplitModel(parts=3, layers=(2, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": 2}, "no option 'part'; did you mean 'parts'"),
        ({"parts": "two"}, "option 'parts': input should be a valid integer.*, not 'two'"),
        ({"layers": [1, "x"]}, "option 'layers': input should be a valid integer"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Registry.of(passes).create("pass", "split_model", options)
    assert "\n" not in str(caught.value)


def test_layers_come_from_a_recipe_as_a_list() -> None:
    assert Registry.of(passes).create("pass", "split_model", {"layers": [2, 1]}) == SplitModel(layers=(2, 1))
