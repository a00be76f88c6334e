"""What calibration finds and writes is of the weights as passes left them, also where it goes on from another run."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import STRUCTURAL, calibrated_model, llama, samples

from llmconv.bundle.part_files import PartFiles
from llmconv.passes import PassContext, PassManager
from llmconv.weights import Columns, Derived, Held, Stored
from llmconv.work.steps import Steps
from llmconv_plugins.passes import W4A16

NORM, NAME = "norm.weight", "lm_head.weight"


def scale_of_the_head(folder: Path, factor: float | None) -> float:
    """After a conversion whose steps lie in the folder: the largest row scale of lm_head, scaled by a factor."""
    model = calibrated_model(llama())
    if factor is not None:
        by = Held(torch.full(model.weights.shape(NORM), factor))
        model.weights = Derived(model.weights, {NAME: Columns(Stored(NAME), by)})
    with PartFiles(folder / "onnx", model.weights) as files:
        context = PassContext(samples(), files, Steps(folder, {}))
        PassManager([*STRUCTURAL, W4A16()]).run(model, context)
        assert model.encodings is not None
        return float(files.open(0, 1).placed[NAME].scale.max())


def test_other_tables_are_another_step(tmp_path: Path) -> None:
    first = scale_of_the_head(tmp_path, None)
    twice = scale_of_the_head(tmp_path, 2.0)
    assert twice == 2 * first
    assert scale_of_the_head(tmp_path, 4.0) == 4 * first  # another number in memory, the same expression over it
    assert scale_of_the_head(tmp_path, 4.0) == 4 * first
