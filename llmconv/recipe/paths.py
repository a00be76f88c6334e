"""The paths of a recipe, which are relative to its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmconv.recipe import shipped
from llmconv.recipe.located import absolute, elsewhere

_PATHS = (("model", "checkpoint"), ("calibration", "text"), ("verify", "text"), ("output", "folder"))


def resolve(values: dict[str, Any], folder: Path) -> None:
    """Make the paths of a recipe absolute."""
    for section, key in _PATHS:
        place = values.get(section)
        if not isinstance(place, dict) or not isinstance(place.get(key), str | Path):
            continue
        if key == "text" and str(place[key]).startswith(shipped.PREFIX):
            place[key] = str(shipped.text(str(place[key])))
        elif not elsewhere(place[key]):
            place[key] = absolute(place[key], folder)
    if isinstance(files := values.get("plugins"), list):
        values["plugins"] = [absolute(f, folder) if isinstance(f, str) else f for f in files]
    model = values.get("model")
    if not isinstance(model, dict):
        return
    if isinstance(apart := model.get("switchable"), dict):
        model["switchable"] = {
            name: absolute(path, folder) if isinstance(path, str | Path) else path for name, path in apart.items()
        }
    if isinstance(given := model.get("adapter"), dict):
        model["adapter"] = {absolute(path, folder): weight for path, weight in given.items()}
    elif isinstance(given, str | Path):
        model["adapter"] = absolute(given, folder)
