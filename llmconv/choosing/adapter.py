"""What an adapter is that is given in a checkpoint's place: its kind, its base, what it changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmconv.errors import CheckpointError
from llmconv.sources.keys import Keys
from llmconv.weights.safetensors import SafetensorsStore

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as peft names them, in a folder of their own
UNNAMED = "a base that it does not name"
VARIANTS = {  # key -> what it is called
    "use_rslora": "rsLoRA",
    "use_dora": "DoRA",
    "rank_pattern": "ranks by pattern",
    "alpha_pattern": "alphas by pattern",
}


def alone(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model that it could lie beside."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def adapter_facts(folder: Path, unusual: list[str]) -> dict[str, Any]:
    """What a folder's adapter_config.json says of it; damaged weights go to what is unusual.

    Raises:
        CheckpointError: the file is damaged.
    """
    keys = Keys.read(folder / CONFIG)
    return {
        "adapter": str(folder),
        "kind": ", ".join([str(keys.get("peft_type")), *(name for key, name in VARIANTS.items() if keys.get(key))]),
        "base": keys.get("base_model_name_or_path"),
        "rank": keys.get("r"),
        "alpha": keys.get("lora_alpha"),
        "changes": _names(keys.get("target_modules")),
        "replaces": _names(keys.get("modules_to_save")),
        "stored": _stored(folder, unusual),
    }


def adapters_near(folder: Path) -> Iterator[str]:
    """Folders of adapters in a checkpoint's folder and beside it, with the base that each names."""
    for file in sorted({*folder.glob(f"*/{CONFIG}"), *folder.glob(CONFIG), *folder.parent.glob(f"*/{CONFIG}")}):
        try:
            base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            base = None
        yield f"{file.parent} (of {base or UNNAMED})"


def _names(value: Any) -> list[str]:
    """Names, or a pattern of them."""
    return [] if value is None else sorted(map(str, value)) if isinstance(value, list) else [str(value)]


def _stored(folder: Path, unusual: list[str]) -> dict[str, int] | None:
    """How many tensors are stored as what; None of files that have no header to tell it."""
    file = folder / WEIGHTS
    try:
        return dict(SafetensorsStore([file]).types) if file.exists() else None
    except CheckpointError as error:
        unusual.append(str(error))
        return None
