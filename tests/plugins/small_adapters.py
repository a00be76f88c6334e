"""The small recipe with two adapters to switch between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_checkpoint import HIDDEN, INNER, LAYERS, RECIPE

RANK, TARGETS = 4, ("q_proj", "v_proj", "down_proj")
ADAPTERS = {"one": (4, ("q_proj", "v_proj")), "two": (2, ("v_proj", "down_proj"))}
CONV = '[[passes]]\nname = "linear_to_conv"'


def write_switchable(small: Path, folder: Path) -> Path:
    """A recipe beside a copy of the small one's checkpoint.

    Args:
        small: the small recipe.
    """
    shutil.copytree(small.parent, folder)
    for seed, (name, (rank, targets)) in enumerate(ADAPTERS.items()):
        write_adapter(folder / name, rank, targets, seed)
    text = (folder / RECIPE).read_text().replace("[model]\n", '[model]\nswitchable = { one = "one", two = "two" }\n')
    more = f'[[passes]]\nname = "lora_inputs"\nrank = {RANK}\ntargets = {json.dumps(TARGETS)}\n\n'
    (folder / RECIPE).write_text(text.replace(CONV, more + CONV))
    return folder / RECIPE


def write_adapter(folder: Path, rank: int, targets: tuple[str, ...], seed: int = 0, **config: object) -> Path:
    """An adapter in PEFT's layout that changes what the small model writes."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for i in range(LAYERS):
        for target in targets:
            down = target == "down_proj"
            stem = f"base_model.model.model.layers.{i}.{'mlp' if down else 'self_attn'}.{target}.lora_"
            tensors[f"{stem}A.weight"] = 0.3 * torch.randn(rank, INNER if down else HIDDEN, generator=generator)
            tensors[f"{stem}B.weight"] = 0.15 * torch.randn(HIDDEN, rank, generator=generator)
    folder.mkdir()
    keys = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(targets), **config}
    (folder / "adapter_config.json").write_text(json.dumps(keys))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
