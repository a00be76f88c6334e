"""Attention whose scores lie hundreds apart: what a mask hides stays hidden, in float, as integers and on the NPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoint import HIDDEN, RECIPE, VOCABULARY, write_recipe

from llmconv import Recipe, Registry, apply
from llmconv.decoding import Decoder
from llmconv.runtimes.runtime import rope_table

LENGTH, CONTEXT = 16, 64
GRAPHS = [f"graphs.{name}={{ ar = {ar}, context = {CONTEXT} }}" for name, ar in (("prompt", LENGTH), ("token", 1))]
SHORT = [*GRAPHS, f"calibration.tokens={CONTEXT}", "passes.split_model.parts=1", "passes.w4a16.quantizer=nearest"]


def with_spread(folder: Path) -> Path:
    """The small recipe over a Llama whose keys have large biases: the scores of a query differ by hundreds."""
    recipe = write_recipe(folder)
    config, file = folder / "tiny_llama/config.json", folder / "tiny_llama/model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), "attention_bias": True, "num_hidden_layers": 1}))
    tensors, generator = load_file(file), torch.Generator().manual_seed(0)
    for kind, size in (("q", 0.0), ("k", 300.0), ("v", 0.0), ("o", 0.0)):
        bias = size * torch.randn(HIDDEN, generator=generator)
        tensors[f"model.layers.0.self_attn.{kind}_proj.bias"] = bias.half()
    save_file(tensors, file)
    return recipe


@pytest.mark.slow
def test_a_mask_hides_later_tokens_whatever_the_scores(tmp_path: Path) -> None:
    recipe = with_spread(tmp_path / RECIPE.removesuffix(".toml"))
    bundle = apply(Recipe.load(recipe, [*SHORT, f"output.folder='{tmp_path / 'bundle'}'"]))  # each pass compared
    assert all(check["passed"] is not False for check in bundle.report["proof"])
    (mask,) = [t for t in bundle.graphs["prompt"].parts[0].inputs if t.kind == "attention_mask"]
    assert mask.encoding.scale * 65535 > 200  # the scores' spread, and more

    half = LENGTH // 2
    known = [1, *range(100, 100 + half - 1)]
    texts = [[*known, *later] for later in (range(300, 300 + half), range(VOCABULARY - half, VOCABULARY))]
    for name in ("onnxruntime", "qnn"):
        with Registry.load().create("runtime", name, {}).open(bundle, ["prompt"]) as runners:
            one, other = (Decoder(runners, rope_table(bundle)).read(text) for text in texts)
        assert np.array_equal(one[:half], other[:half]), name
        assert not np.array_equal(one[half:], other[half:]), name
