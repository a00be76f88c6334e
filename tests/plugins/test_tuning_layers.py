"""Scales and norms trained a layer after the other, toward what it gives in float."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONTEXT, LAYERS, STRUCTURAL, W4A16, calibrated_model, llama, rounded, samples

from llmconv import PassError
from llmconv.decoding import TorchRunner
from llmconv.decoding.torch_runner import HostInputs
from llmconv.encodings import Encoded
from llmconv.graph import Graph, trace
from llmconv.passes import PassContext, PassManager
from llmconv.quantization import CALIBRATION, tune_layers
from llmconv.quantization.student import Student
from llmconv.testing import random_weights
from llmconv.weights import Derived, DictStore, Held, WeightStore
from llmconv.work import Steps
from llmconv_plugins.passes import SplitModel

STEPS = 20
SAMPLES = samples(2)  # all of them in each step, so that losses can be compared
PIECES = 2 * LAYERS + 1  # attention and MLP of each layer, and what gives the logits


@pytest.fixture
def graph() -> Graph:
    return trace(llama(), CONTEXT, CONTEXT, "calibration")


@pytest.fixture
def weights() -> DictStore:
    return random_weights(llama())


def losses_by_piece(losses: list[tuple[int, float]]) -> list[list[float]]:
    """Each begins with step 0."""
    starts = [i for i, (step, _) in enumerate(losses) if step == 0]
    ends = [*starts[1:], len(losses)]
    return [[loss for _, loss in losses[start:end]] for start, end in zip(starts, ends, strict=True)]


def divergence(graph: Graph, weights: WeightStore, quantized: dict[str, Encoded]) -> float:
    """Of the whole model's logits from the float model's, summed over the samples."""
    rounded = Derived(weights, {name: Held(e.dequantize()) for name, e in quantized.items()})
    host, total = HostInputs(graph), 0.0
    for sample in SAMPLES:
        given = {name: x.numpy() for name, x in host.of(sample).items()}
        exact, found = (torch.from_numpy(TorchRunner(graph, s).run(given)["logits"]) for s in (weights, rounded))
        known = exact.log_softmax(-1)
        total += float((known.exp() * (known - found.log_softmax(-1))).sum())
    return total


@pytest.mark.parametrize("block", [0, 8])
def test_each_piece_comes_nearer_and_so_does_the_whole(
    graph: Graph, weights: DictStore, block: int, tmp_path: Path
) -> None:
    before, losses = rounded(graph, weights, block), list[tuple[int, float]]()
    after = tune_layers(graph, weights, before, SAMPLES, STEPS, tmp_path, progress=lambda *said: losses.append(said))
    pieces = losses_by_piece(losses)
    assert [len(piece) for piece in pieces] == [STEPS] * PIECES
    assert all(piece[-1] < piece[0] for piece in pieces)
    assert divergence(graph, weights, after) < divergence(graph, weights, before)
    for name, known in before.items():
        assert torch.equal(after[name].ints, known.ints)
        assert (after[name].scale > 0).all()
    assert {name for name, e in after.items() if e.grid.bits == 16} == {
        name for name, x in weights.tensors.items() if x.ndim == 1
    }


def test_parts_and_split_heads_are_tuned_as_the_whole_is(graph: Graph, weights: DictStore, tmp_path: Path) -> None:
    def losses(of: Graph, folder: str) -> list[float]:
        found: list[float] = []
        (tmp_path / folder).mkdir()
        known = rounded(graph, weights)
        tune_layers(of, weights, known, SAMPLES, 3, tmp_path / folder, progress=lambda _step, loss: found.append(loss))
        return found

    model = calibrated_model(llama())
    PassManager([*STRUCTURAL, SplitModel(parts=2)]).run(model, PassContext(SAMPLES))
    assert len(model.graphs[CALIBRATION].parts) == 2
    assert losses(model.graphs[CALIBRATION], "split") == pytest.approx(losses(graph, "whole"), rel=1e-3)


def test_one_piece_of_weights_is_held_at_a_time(graph: Graph, weights: DictStore, tmp_path: Path) -> None:
    class Counting:
        """Says in which order weights are read."""

        def __init__(self) -> None:
            self.read_names: list[str] = []

        def shape(self, name: str) -> tuple[int, ...]:
            return weights.shape(name)

        def sha256(self, name: str) -> str | None:
            return weights.sha256(name)

        def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
            self.read_names.append(name)
            return weights.read(name, rows)

    store = Counting()
    tune_layers(graph, store, rounded(graph, weights), SAMPLES, 3, tmp_path)
    layers = [name.split(".")[1] for name in store.read_names if name.startswith("layers.")]
    assert [layer for layer, _ in groupby(layers)] == [str(i) for i in range(LAYERS)]  # none is come back to
    assert len(store.read_names) == len(set(store.read_names))  # not once a step


def test_the_same_seed_gives_the_same_scales(graph: Graph, weights: DictStore, tmp_path: Path) -> None:
    found = []
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        found.append(tune_layers(graph, weights, rounded(graph, weights), SAMPLES, 3, tmp_path / run))
    assert all(torch.equal(found[0][name].scale, found[1][name].scale) for name in found[0])


def test_no_loss_is_an_error_that_says_where(graph: Graph, weights: DictStore, tmp_path: Path) -> None:
    known = rounded(graph, weights)
    name = "layers.1.mlp.up_proj.weight"
    broken = Encoded(known[name].ints, known[name].scale * float("nan"), 0, known[name].grid)
    with pytest.raises(PassError, match=r"tuning diverges at step 0 of what gives 'layers\.1\."):
        tune_layers(graph, weights, {**known, name: broken}, SAMPLES, 1, tmp_path)


def test_the_pass_tunes_so() -> None:
    found = {}
    for tuned in ("model", "layer"):
        model = calibrated_model(llama())
        passes = [*STRUCTURAL, SplitModel(parts=2), W4A16(quantizer="clipped", tuning_steps=4, tuned=tuned)]  # type: ignore[arg-type]
        PassManager(passes).run(model, PassContext(SAMPLES))
        assert model.encodings is not None
        found[tuned] = model.encodings.quantized
    name = "layers.0.mlp.up_proj.weight"
    assert torch.equal(found["model"][name].ints, found["layer"][name].ints)
    assert not torch.equal(found["model"][name].scale, found["layer"][name].scale)


def test_killed_between_pieces_it_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends with the scales of a run that nobody killed."""
    trained: list[str] = []
    train = Student.train

    def note(self: Student, *args: Any) -> None:
        if stop and len(trained) == PIECES - 2:
            raise KeyboardInterrupt
        trained.append(args[-1])
        train(self, *args)

    def run(folder: Path) -> dict[str, Encoded]:
        model = calibrated_model(llama())
        context = PassContext(SAMPLES, steps=Steps(folder, {}))
        PassManager([*STRUCTURAL, W4A16(quantizer="clipped", tuning_steps=2, tuned="layer")]).run(model, context)
        assert model.encodings is not None
        return model.encodings.quantized

    monkeypatch.setattr(Student, "train", note)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    stop, before = False, list(trained)
    again = run(tmp_path / "killed")
    assert len(trained) == len(set(trained)) == PIECES
    assert before == trained[: len(before)]
    assert not list((tmp_path / "killed" / ".steps").glob("tune_*"))
    whole = run(tmp_path / "whole")
    assert all(torch.equal(again[name].scale, whole[name].scale) for name in whole)
