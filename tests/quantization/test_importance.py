"""What passes look at before anything is quantized, and what they chose by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tiny_graphs import tiny_causal
from torch import Tensor

from llmconv.graph import Model, name_of, trace
from llmconv.passes import PassContext
from llmconv.quantization import CALIBRATION, channel_shares, chosen_on_samples, observe_samples
from llmconv.quantization.linears import linear_inputs
from llmconv.testing import random_weights
from llmconv.weights import Affine, Derived, Stored
from llmconv.work.steps import Steps

SAMPLES = [[1, 2, 3, 4], [1, 9, 9, 9], [1, 5, 6, 7]]


def causal() -> Model:
    module = tiny_causal()
    return Model({CALIBRATION: trace(module, 4, 4, CALIBRATION)}, random_weights(module), None)


def seen(model: Model) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    observe_samples(model, PassContext(SAMPLES), lambda node, x: found.setdefault(name_of(node), []).append(x))
    return found


def test_every_value_of_every_sample_is_shown() -> None:
    model = causal()
    found = seen(model)
    (part,) = model.graphs[CALIBRATION].parts
    for read in linear_inputs(part).values():
        assert len(found[read.value]) == len(SAMPLES)


def test_what_comes_after_the_last_value_that_is_asked_for_is_not_computed() -> None:
    model = causal()
    (part,) = model.graphs[CALIBRATION].parts
    every, asked = seen(model), next(iter(linear_inputs(part).values())).value
    found: dict[str, list[Tensor]] = {}
    context = PassContext(SAMPLES)
    observe_samples(model, context, lambda node, x: found.setdefault(name_of(node), []).append(x), [asked])
    assert len(found) < len(every)
    for mine, theirs in zip(found[asked], every[asked], strict=True):
        assert torch.equal(mine, theirs)


def test_each_token_counts_alike() -> None:
    model = causal()
    (part,) = model.graphs[CALIBRATION].parts
    shares, values = channel_shares(model, PassContext(SAMPLES)), seen(model)
    for read in linear_inputs(part).values():
        squares = torch.cat([read.tokens(x) for x in values[read.value]]).square()
        squares[0] *= 1e6  # a token's size is of no account
        torch.testing.assert_close(shares[read.value], (squares / squares.mean(1, keepdim=True)).mean(0))
        assert float(shares[read.value].mean()) == pytest.approx(1.0)


class Work:
    """Chooses, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Mapping[str, Tensor]:
        self.times += 1
        return {"a.b": torch.tensor([1.0, 2.0])}


def test_a_choice_is_made_once_and_kept(tmp_path: Path) -> None:
    model, work = causal(), Work()
    for _ in range(2):
        context = PassContext(SAMPLES, steps=Steps(tmp_path, {}))
        assert torch.equal(
            chosen_on_samples(model, context, "some", work, {"option": 1})["a.b"], torch.tensor([1.0, 2.0])
        )
        assert list(context.chosen) == ["some.a.b"]
    assert work.times == 1
    without_text = PassContext(chosen=context.chosen)
    assert list(chosen_on_samples(model, without_text, "some", work)) == ["a.b"]
    assert chosen_on_samples(model, without_text, "so", work) == {}  # another pass's
    assert work.times == 1


@pytest.mark.parametrize("change", ["samples", "option", "weights"])
def test_another_choice_is_made_where_something_is_other(tmp_path: Path, change: str) -> None:
    work = Work()
    chosen_on_samples(causal(), PassContext(SAMPLES, steps=Steps(tmp_path, {})), "some", work, {"option": 1})
    model = causal()
    name = str(next(n for n in model.graphs[CALIBRATION].parts[0].graph.nodes if n.op == "get_attr").target)
    if change == "weights":
        model.weights = Derived(model.weights, {name: Affine(Stored(name), 2.0)})
    samples = SAMPLES[1:] if change == "samples" else SAMPLES
    context = PassContext(samples, steps=Steps(tmp_path, {}))
    chosen_on_samples(model, context, "some", work, {"option": 2 if change == "option" else 1})
    assert work.times == 2


def test_without_text_or_its_graph_nothing_is_chosen() -> None:
    work, model = Work(), causal()
    assert chosen_on_samples(model, PassContext(), "some", work) == {}
    del model.graphs[CALIBRATION]
    assert chosen_on_samples(model, PassContext(SAMPLES), "some", work) == {}
    assert work.times == 0
