"""The tiny recipe over a Llama of three layers, 16 wide, of random weights: for end-to-end tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

RECIPE = "small.toml"
TINY = Path(__file__).parents[1] / "recipes" / "tiny_llama"
HIDDEN, HEADS, INNER, LAYERS, VOCABULARY = 16, 2, 32, 3, 2048
SIZES = {
    "hidden_size": HIDDEN,
    "head_dim": HIDDEN // HEADS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
}


def write_recipe(folder: Path) -> Path:
    """The tiny recipe over a checkpoint of its own, with the tiny Llama's tokenizer and a page of its texts."""
    checkpoint = folder / "tiny_llama"
    checkpoint.mkdir(parents=True)
    shutil.copyfile(TINY / "tokenizer.model", checkpoint / "tokenizer.model")
    for name, characters in (("calibration.txt", 4000), ("heldout.txt", 800)):
        (checkpoint / name).write_text((TINY / name).read_text()[:characters])
    config = json.loads((TINY / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **SIZES}))
    save_file(_tensors(), checkpoint / "model.safetensors")
    recipe = folder / RECIPE
    recipe.write_text((TINY.parent / "tiny_llama.toml").read_text().replace("samples = 32", "samples = 4"))
    return recipe


def _tensors() -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (HIDDEN, INNER)}
        shapes |= {f"{layer}{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    generator = torch.Generator().manual_seed(0)
    return {name: _drawn(name, shape, generator).half() for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Deviations with which trainings begin: the residual stream outweighs what a layer adds, as in trained models."""
    x = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * x
    if "embed" in name:
        return x
    into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
    return x * shape[-1] ** -0.5 * (0.5 if into_stream else 1.0)
