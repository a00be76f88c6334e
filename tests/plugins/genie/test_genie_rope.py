"""Genie's own tables of cos and sin, as it dumps them, beside those of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmconv import Bundle, Sampling
from llmconv.sources import Rope
from llmconv_plugins.genie.genie_config import CONFIG, TOKENIZER, rope_config, simulator_config
from llmconv_plugins.genie.genie_dialog import GenieDialog

THETA, HEAD, LONGEST = 10000.0, 8, 128
ORIGINAL = {"original_max_position_embeddings": 32}
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


@pytest.mark.parametrize("kind", KINDS)
def test_genie_computes_the_models_tables(small_bundle: Bundle, kind: str, tmp_path: Path) -> None:
    """A step of the 16-bit encoding apart at most, which is where two ways to round a half part; factors above 1 are
    clipped by an encoding made for 1, in Genie as here.
    """
    rope, angles = ropes_of(kind)
    config = simulator_config(
        json.loads(small_bundle.path(CONFIG).read_text()),
        [small_bundle.path(b["file"]).resolve() for b in small_bundle.manifest["binaries"] if b["simulator"]],
        small_bundle.path(TOKENIZER).resolve(),
        Sampling(),
        (2,),
    )
    config["dialog"]["engine"]["model"]["positional-encoding"] = rope_config(rope)
    config["dialog"]["debug"] = {"path": str(tmp_path), "dump-tensors": True}
    GenieDialog(config, LONGEST, takes_past=True).close()
    encodings = {t.name: t.encoding for t in small_bundle.graphs["token"].parts[0].inputs}
    for name, table in (("position_ids_cos", angles.cos()), ("position_ids_sin", angles.sin())):
        encoding = encodings[name]
        assert encoding is not None
        (file,) = tmp_path.rglob(f"{name}.u16.dat")
        genies = torch.from_numpy(np.fromfile(file, np.uint16).astype(np.int32)).reshape(angles.shape)
        assert (genies - encoding.quantize(table.float() * rope.factor)).abs().max() <= 1
        assert genies.unique().numel() > LONGEST  # a table it is
