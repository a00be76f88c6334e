"""Scales and norms trained toward the float model, integers as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import CONTEXT, STRUCTURAL, W4A16, calibrated_model, llama, rounded, samples

from llmconv import PassError
from llmconv.encodings import Encoded, WeightEncoding
from llmconv.graph import Graph, trace
from llmconv.passes import PassContext, PassManager
from llmconv.quantization import CALIBRATION, Known, nearest, tune, tuning
from llmconv.testing import random_weights
from llmconv.weights import DictStore
from llmconv.work import Steps

STEPS = 12
SAMPLES = samples(2)  # all of them in each step, so that losses can be compared


@pytest.fixture
def graph() -> Graph:
    return trace(llama(), CONTEXT, CONTEXT, "calibration")


@pytest.fixture
def weights() -> DictStore:
    return random_weights(llama())


@pytest.mark.parametrize("block", [0, 8])
def test_the_divergence_falls_and_integers_stay(graph: Graph, weights: DictStore, block: int, tmp_path: Path) -> None:
    before, losses = rounded(graph, weights, block), []
    after = tune(graph, weights, before, SAMPLES, STEPS, tmp_path, progress=lambda _step, loss: losses.append(loss))
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    for name, known in before.items():
        assert torch.equal(after[name].ints, known.ints)
        assert (after[name].scale > 0).all()
        assert (after[name].multipliers is None) == (block == 0)
    assert any(not torch.equal(after[name].scale, known.scale) for name, known in before.items())


def test_split_heads_are_tuned_as_whole_projections_are(graph: Graph, weights: DictStore, tmp_path: Path) -> None:
    def losses(of: Graph) -> list[float]:
        found: list[float] = []
        tune(
            of, weights, rounded(graph, weights), SAMPLES, 3, tmp_path, progress=lambda _step, loss: found.append(loss)
        )
        return found

    model = calibrated_model(llama())
    PassManager(STRUCTURAL).run(model, PassContext(SAMPLES))
    whole = losses(graph)
    assert losses(model.graphs[CALIBRATION]) == pytest.approx(whole, rel=1e-3)
    assert whole[-1] < whole[0]


def test_the_same_seed_gives_the_same_scales(graph: Graph, weights: DictStore, tmp_path: Path) -> None:
    first, second = (tune(graph, weights, rounded(graph, weights), SAMPLES, 3, tmp_path) for _ in range(2))
    assert all(torch.equal(first[name].scale, second[name].scale) for name in first)


def test_two_samples_at_once_teach_what_they_do_in_turn(graph: Graph, weights: DictStore, tmp_path: Path) -> None:
    threads, found = torch.get_num_threads(), list[dict[str, Encoded]]()
    try:
        for count in (1, 2):  # on one, a sample comes after the other
            torch.set_num_threads(count)
            found.append(tune(graph, weights, rounded(graph, weights), SAMPLES, 3, tmp_path))
    finally:
        torch.set_num_threads(threads)
    in_turn, at_once = found
    for name, known in in_turn.items():  # but for the order in which floats are added
        torch.testing.assert_close(at_once[name].scale, known.scale, rtol=1e-4, atol=0)


def test_norms_are_tuned_too_and_have_16_bits(graph: Graph, weights: DictStore, tmp_path: Path) -> None:
    found = tune(graph, weights, rounded(graph, weights), SAMPLES, STEPS, tmp_path)
    norms = {name: e for name, e in found.items() if e.grid.bits == 16}
    assert norms
    for name, encoded in norms.items():
        untouched = nearest(weights.read(name), WeightEncoding(16)).dequantize()
        assert not torch.equal(encoded.dequantize(), untouched)


def test_no_divergence_is_an_error_not_a_model_of_nan(graph: Graph, weights: DictStore, tmp_path: Path) -> None:
    known = rounded(graph, weights)
    name = next(iter(known))
    broken = Encoded(known[name].ints, known[name].scale * float("nan"), 0, known[name].grid)
    with pytest.raises(PassError, match="tuning diverges at step 0"):
        tune(graph, weights, {**known, name: broken}, SAMPLES, 1, tmp_path)


def test_the_pass_writes_what_came_of_tuning(tmp_path: Path) -> None:
    steps, changed = [], {}
    for count in (0, 4):
        model = calibrated_model(llama())
        context = PassContext(SAMPLES, steps=Steps(tmp_path / str(count), {}))
        PassManager([*STRUCTURAL, W4A16(quantizer="clipped", tuning_steps=count)]).run(model, context)
        assert model.encodings is not None
        changed[count] = model.encodings.quantized
        steps.append((tmp_path / str(count) / ".steps" / "tune.json").is_file())
    assert steps == [False, True]
    name = "layers.0.mlp.up_proj.weight"
    assert torch.equal(changed[0][name].ints, changed[4][name].ints)
    assert not torch.equal(changed[0][name].scale, changed[4][name].scale)


def test_tuning_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> dict[str, Encoded]:
        model = calibrated_model(llama())
        context = PassContext(SAMPLES, steps=Steps(tmp_path, {}))
        PassManager([*STRUCTURAL, W4A16(quantizer="clipped", tuning_steps=2)]).run(model, context)
        assert model.encodings is not None
        return model.encodings.quantized

    first = run()
    monkeypatch.setattr(tuning, "tune", lambda *_, **__: pytest.fail("tuned again"))
    second = run()
    assert all(torch.equal(first[n].scale, second[n].scale) for n in first)
    assert all(torch.equal(first[n].ints, second[n].ints) for n in first)


def test_nearest_alone_has_nothing_to_tune() -> None:
    with pytest.raises(PassError, match="tuning starts from what a quantizer made of calibration text"):
        PassManager([*STRUCTURAL, W4A16(tuning_steps=1)]).run(calibrated_model(llama()), PassContext(SAMPLES))


def test_fewer_steps_than_none_are_refused() -> None:
    with pytest.raises(PassError, match="tuning_steps is -3; choose 0 or more"):
        W4A16(tuning_steps=-3)


def test_what_is_known_is_told_apart_by_every_number(weights: DictStore) -> None:
    name = next(name for name, x in weights.tensors.items() if x.ndim == 2 and x.numel() > 1000)
    known = nearest(weights.read(name), WeightEncoding(4))
    ints = known.ints.clone()
    ints[len(ints) // 2, ints.shape[1] // 2] ^= 1  # which a tensor's own repr leaves out
    assert repr(Known(known)) == repr(Known(known))
    assert repr(Known(known)) != repr(Known(replace(known, ints=ints)))
