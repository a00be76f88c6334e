import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from llmconv_npz_folder import NpzFolder

from llmconv import CheckpointError
from llmconv.testing import random_weights, try_source

SIZES = {"layers": 2, "hidden": 16, "heads": 2, "vocabulary": 2048, "positions": 128, "bos": 1, "eos": 2}


@pytest.fixture
def checkpoint(tmp_path: Path, llmconv_checkpoint: Callable[..., Path]) -> Path:
    """Random weights, and the tokenizer of another tiny model."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copyfile(llmconv_checkpoint("llama") / "tokenizer.model", folder / "tokenizer.model")
    (folder / "sizes.json").write_text(json.dumps(SIZES))
    weights = random_weights(NpzFolder(folder).module()).tensors
    np.savez(folder / "weights.npz", **{name: x.numpy() for name, x in weights.items()})
    return folder


def test_module_weights_and_tokenizer_go_together(checkpoint: Path) -> None:
    assert NpzFolder.reads(checkpoint)
    trial = try_source(NpzFolder(checkpoint))
    assert trial.config.layers == 2
    assert trial.logits.abs().max() > 0.1


def test_a_missing_array_is_named(checkpoint: Path) -> None:
    np.savez(checkpoint / "weights.npz", other=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"weights\.npz: no array 'embed\.weight'"):
        try_source(NpzFolder(checkpoint))
