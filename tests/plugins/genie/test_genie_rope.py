"""Genie's own tables of cos and sin, as it dumps them, beside those of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmconv import Bundle, Recipe, Sampling, Wish, apply, choose
from llmconv.sources import Rope
from llmconv.testing import tiny_checkpoint
from llmconv_plugins.genie.genie_config import CONFIG, TOKENIZER, rope_config, simulator_config
from llmconv_plugins.genie.genie_dialog import GenieDialog
from llmconv_plugins.runtimes.genie import GenieRuntime
from llmconv_plugins.runtimes.simulator import QnnSimulator

THETA, HEAD, LONGEST = 10000.0, 8, 128
ORIGINAL = {"original_max_position_embeddings": 32}
PROMPT = [1, *(300 + 7 * i % 200 for i in range(60))]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "yarn": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.5, 2.0],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
        "factor": 4.0,
        **ORIGINAL,
    },
}


def ropes_of(kind: str) -> tuple[Rope, torch.Tensor]:
    """A rope by transformers' frequencies and factor; its angles (LONGEST, HEAD / 2) in double precision."""
    config = LlamaConfig(
        head_dim=HEAD, max_position_embeddings=LONGEST, rope_parameters={"rope_theta": THETA, **KINDS[kind]}
    )
    if kind == "plain":
        rope = Rope.plain(THETA, HEAD)
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[KINDS[kind]["rope_type"]](config, torch.device("cpu"))
        rope = Rope(THETA, tuple(frequencies.tolist()), factor)
    return rope, torch.outer(torch.arange(LONGEST).double(), torch.tensor(rope.frequencies).double())


def tables_of_genie(bundle: Bundle, positional: object, folder: Path) -> dict[str, np.ndarray]:
    """By the input's name, as Genie on the simulator computes and dumps them for a `positional-encoding`."""
    config = simulator_config(
        json.loads(bundle.path(CONFIG).read_text()),
        [bundle.path(b["file"]).resolve() for b in bundle.manifest["binaries"] if b["simulator"]],
        bundle.path(TOKENIZER).resolve(),
        Sampling(),
        (2,),
    )
    config["dialog"]["engine"]["model"]["positional-encoding"] = positional
    config["dialog"]["debug"] = {"path": str(folder), "dump-tensors": True}
    GenieDialog(config, LONGEST, takes_past=True).close()
    found = folder.rglob("*position_ids_*.u16.dat")  # of a second rope: local__position_ids_cos.u16.dat
    return {f.name.partition(".")[0].replace("__", "_"): np.fromfile(f, np.uint16) for f in found}


def assert_same(bundle: Bundle, tables: dict[str, np.ndarray], prefix: str, rope: Rope, angles: torch.Tensor) -> None:
    """What every host here fills in, number by number where nothing is stretched; else a step of the 16-bit encoding
    apart at most, as always of the true table. Factors above 1 are clipped by an encoding made for 1, in Genie as here.
    """
    encodings = {t.name: t.encoding for t in bundle.graphs["token"].parts[0].inputs}
    names, exact = (f"{prefix}cos", f"{prefix}sin"), (angles.cos(), angles.sin())
    for name, table, filled in zip(names, exact, rope.filled(len(angles), encodings[names[0]]), strict=True):
        encoding = encodings[name]
        assert encoding is not None
        genies = torch.from_numpy(tables[name].astype(np.int32)).reshape(angles.shape)
        assert (genies - encoding.quantize(table.float() * rope.factor)).abs().max() <= 1
        assert (genies - encoding.quantize(filled)).abs().max() <= (0 if rope.is_plain else 1)
        assert genies.unique().numel() > LONGEST  # a table it is


@pytest.mark.parametrize("kind", KINDS)
def test_genie_computes_the_models_tables(small_bundle: Bundle, kind: str, tmp_path: Path) -> None:
    rope, angles = ropes_of(kind)
    tables = tables_of_genie(small_bundle, rope_config(rope), tmp_path)
    assert_same(small_bundle, tables, "position_ids_", rope, angles)


@pytest.mark.slow
def test_genie_computes_both_tables_of_two_ropes(tmp_path: Path) -> None:
    """Of Gemma 3, whose layers with a window are turned by another base; and it answers as its graphs do."""
    checkpoint = tiny_checkpoint(tmp_path / "gemma3", "gemma3_text", num_hidden_layers=6, sliding_window=LONGEST)
    chosen = choose(Wish(str(checkpoint), "Galaxy S23 Ultra", context=LONGEST))
    changes = [f"output.folder='{tmp_path / 'bundle'}'", "backend.twins=always"]
    apply(Recipe.loads(chosen.text, "gemma3", tmp_path, changes), verify=False)
    bundle = Bundle(tmp_path / "bundle")
    written = json.loads(bundle.path(CONFIG).read_text())["dialog"]["engine"]["model"]["positional-encoding"]
    tables = tables_of_genie(bundle, written, tmp_path / "dumped")
    config = AutoConfig.from_pretrained(checkpoint)
    for prefix, kind in (("position_ids_", "full_attention"), ("local_position_ids_", "sliding_attention")):
        rope = Rope.plain(config.rope_parameters[kind]["rope_theta"], config.head_dim)
        angles = torch.outer(torch.arange(LONGEST).double(), torch.tensor(rope.frequencies).double())
        assert_same(bundle, tables, prefix, rope, angles)
    with (
        GenieRuntime().dialog(bundle, Sampling(), (2,)) as genie,
        QnnSimulator().dialog(bundle, Sampling(), (2,)) as qnn,
    ):
        assert list(genie.query(PROMPT, 8)) == list(qnn.query(PROMPT, 8))
