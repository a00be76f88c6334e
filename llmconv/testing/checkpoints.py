"""A tiny checkpoint of any family, and a recipe over one: a few seconds from end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llmconv.errors import CheckpointError
from llmconv.naming import nearest
from llmconv.plugins.registry import Registry
from llmconv.recipe import shipped
from llmconv.sources.family import Family
from llmconv.sources.keys import Keys
from llmconv.weights.expressions import Affine, Cut, Expression, Halved, Stored

RECIPE = "tiny_llama"  # of those that come with llmconv: its tokenizer and texts serve the tiny ones too
SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 2048,  # the tokenizer's
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
)


def tiny_checkpoint(folder: Path, family: type[Family] | str, *, seed: int = 0, **config: Any) -> Path:
    """Write a checkpoint in Hugging Face's layout: config.json, model.safetensors of random weights, a tokenizer.

    Args:
        folder: to be made; given back.
        family: the class, or a model type that an installed plugin reads.
        config: keys of config.json beside, or instead of, Llama's at the smallest sizes; None leaves one out.

    Raises:
        CheckpointError: no family has that model type, or it cannot be written at these sizes.
    """
    registry = Registry.load()
    known = dict(registry.families)
    if isinstance(family, type):
        known |= dict.fromkeys(family.types, family)
    kind = family if isinstance(family, str) else family.types[0]
    if kind not in known:
        raise CheckpointError(f"no family has model type '{kind}'{nearest(kind, known)}")
    folder.mkdir(parents=True)
    shutil.copyfile(shipped.folder() / RECIPE / "tokenizer.model", folder / "tokenizer.model")
    values = {key: value for key, value in {"model_type": kind, **SIZES, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    source = registry.create("source", registry.source_for(folder), {"checkpoint": folder})
    source.know(known)
    made, shapes = known[kind](Keys(folder / "config.json", values)), dict[str, tuple[int, ...]]()
    for name, parameter in source.module().named_parameters():
        of = made.weight(name, _Whatever(made))  # type: ignore[arg-type]  # names are looked for in it
        for tensor, shape in _stored(of, tuple(parameter.shape)).items():
            shapes[tensor] = max(shape, shapes.get(tensor, shape))  # rows that several projections share
    generator = torch.Generator().manual_seed(seed)
    save_file({name: _drawn(name, shape, generator) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def tiny_recipe(folder: Path, **config: Any) -> Path:
    """Write the smallest shipped recipe over a checkpoint of its own, with a page of text to calibrate on.

    Args:
        folder: to be made.
        config: as of `tiny_checkpoint`.

    Returns:
        The recipe's file, which has every pass of the shipped one and its backend.
    """
    tiny_checkpoint(folder / RECIPE, "llama", **config)
    for name, characters in (("calibration.txt", 4000), ("heldout.txt", 400)):
        text = (shipped.folder() / RECIPE / name).read_text(encoding="utf-8")
        (folder / RECIPE / name).write_text(text[:characters], encoding="utf-8")
    recipe = folder / "tiny.toml"
    text = (shipped.folder() / f"{RECIPE}.toml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("samples = 32", "samples = 4"), encoding="utf-8")
    return recipe


class _Whatever:
    """A checkpoint that has every tensor that a family asks for, but an lm_head of its own where that is tied."""

    def __init__(self, family: Family) -> None:
        self._tied = family.keys.flag("tie_word_embeddings")

    def __contains__(self, name: str) -> bool:
        return not (self._tied and name.startswith("lm_head"))


def _stored(expression: Expression, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The tensors that an expression is over, with the shapes that give a result of this shape."""
    if isinstance(expression, Stored):
        return {expression.name: shape}
    if isinstance(expression, Cut):
        return _stored(expression.x, (expression.stop, *shape[1:]))
    if isinstance(expression, Affine | Halved):
        return _stored(expression.x, shape)
    raise CheckpointError(f"cannot tell which tensors give {expression}; write the checkpoint by hand")


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Deviations with which trainings begin: the residual stream outweighs what a layer adds, as in trained models."""
    x = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * x
    into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
    return x if "embed" in name else x * shape[-1] ** -0.5 * (0.5 if into_stream else 1.0)
