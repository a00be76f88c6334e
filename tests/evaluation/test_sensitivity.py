"""What one weight's rounding costs, against a run of the whole model with that weight alone exchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmconv import Bundle, BundleError, Registry
from llmconv.bundle.weights import BundleStore
from llmconv.decoding import Decoder, TorchRunner
from llmconv.evaluation import Sensitivity, Subject, chosen, log_probabilities, sensitivities
from llmconv.graph import trace
from llmconv.weights import Derived, Held

TOKENS = 24
ROUNDING = 1e-4  # of the divergence: log probabilities are kept in float32


@pytest.fixture(scope="module")
def subject(small_bundle: Bundle) -> Subject:
    return Subject(small_bundle, Registry.load(), lambda _stage, _item: None)


@pytest.fixture(scope="module")
def found(subject: Subject) -> list[Sensitivity]:
    return sensitivities(subject, [window[:TOKENS] for window in subject.windows[:2]])


@pytest.mark.slow
def test_every_weight_of_4_bits_is_measured_and_the_worst_comes_first(
    subject: Subject, found: list[Sensitivity]
) -> None:
    index = BundleStore(subject.bundle.folder).index
    assert {one.name for one in found} == {name for name, entry in index.items() if entry["bits"] == 4}
    assert [one.kl for one in found] == sorted((one.kl for one in found), reverse=True)
    assert all(one.kl > 0 and one.more > 0 for one in found)


@pytest.mark.parametrize("place", [0, -1])
def test_the_divergence_is_that_of_a_run_with_this_weight_exchanged(
    subject: Subject, found: list[Sensitivity], place: int
) -> None:
    name = found[place].name
    assert subject.checkpoint is not None
    graph = trace(subject.checkpoint.source.module(), TOKENS, TOKENS, "whole")
    exchanged = Derived(subject.weights, {name: Held(BundleStore(subject.bundle.folder).read(name))})
    rows = []
    for window in (window[:TOKENS] for window in subject.windows[:2]):
        expected, got = (
            log_probabilities(Decoder([TorchRunner(graph, store)], None).read(window))
            for store in (subject.weights, exchanged)
        )
        rows.append((np.exp(expected) * (expected - got)).sum(axis=1))
    assert found[place].kl == pytest.approx(float(np.concatenate(rows).mean()), rel=ROUNDING, abs=1e-7)


def test_what_takes_most_away_for_a_byte_is_chosen_within_the_budget() -> None:
    costs = [Sensitivity("large", 0.9, 100), Sensitivity("dense", 0.5, 10), Sensitivity("idle", 0.0001, 10)]
    assert [one.name for one in chosen(costs, 1000, 0.02)] == ["dense", "idle"]
    assert [one.name for one in chosen(costs, 1000, 0.11)] == ["dense", "large"]
    assert chosen(costs, 1000, 0.0) == []


def test_a_bundle_whose_checkpoint_is_gone_says_so(subject: Subject, tmp_path: Path) -> None:
    manifest = {**subject.bundle.manifest}
    recipe = {**manifest["recipe"], "model": {**manifest["recipe"]["model"], "checkpoint": str(tmp_path / "gone")}}
    (gone := Subject(Bundle(subject.bundle.folder), Registry.load(), lambda _s, _i: None)).bundle.manifest.update(
        {"recipe": recipe}
    )
    with pytest.raises(BundleError, match=r"the checkpoint .* is gone"):
        sensitivities(gone, [subject.windows[0][:TOKENS]])
