"""The example family reads a checkpoint of its own kind, as its hook brings it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from llmconv import Registry
from llmconv.decoding import Decoder, TorchRunner
from llmconv.graph import trace
from llmconv_plugins import sources

FILE = Path(__file__).parents[1] / "examples" / "own_family" / "llmconv_nano.py"
CONFIG = {
    "model_type": "nano",
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "logit_factor": 3.0,
}


def tensors() -> dict[str, torch.Tensor]:
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (24, 16),
        f"{layer}self_attn.qkv.weight": ((2 + 1 + 1) * 6, 16),
        f"{layer}self_attn.o_proj.weight": (16, 12),
        f"{layer}mlp.gate_proj.weight": (20, 16),
        f"{layer}mlp.up_proj.weight": (20, 16),
        f"{layer}mlp.down_proj.weight": (16, 20),
        f"{layer}self_attn.query_norm.weight": (6,),
        f"{layer}self_attn.key_norm.weight": (6,),
        **{f"{layer}{name}.weight": (16,) for name in ("input_layernorm", "post_attention_layernorm")},
        "model.norm.weight": (16,),
    }
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def logits(registry: Registry, folder: Path, **changes: object) -> np.ndarray:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    source = registry.source("decoder", {"checkpoint": folder})
    graph = trace(source.module(), 5, 5, "whole")
    return Decoder([TorchRunner(graph, source.weights())], None).read([3, 1, 4, 1, 5])


def test_the_example_family_is_read(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("llmconv_nano", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    registry = Registry.of(sources, module)
    save_file(tensors(), tmp_path / "model.safetensors")
    found = logits(registry, tmp_path)
    assert np.abs(found).max() > 1
    np.testing.assert_allclose(found, 3 * logits(registry, tmp_path, logit_factor=None), rtol=1e-5)
    assert np.abs(found - logits(registry, tmp_path, rope_theta=1000.0)).max() > 1e-3
    weights = registry.source("decoder", {"checkpoint": tmp_path}).weights()
    assert torch.equal(
        weights.read("layers.0.self_attn.k_proj.weight"), tensors()["model.layers.0.self_attn.qkv.weight"][12:18]
    )
