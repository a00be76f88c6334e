"""What several commands take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def changes(assignments: Sequence[str] | None, checkpoint: Path | None, output: Path | None) -> list[str]:
    """What the command line changes in a recipe."""
    found = list(assignments or [])
    for key, value in (("model.checkpoint", checkpoint), ("output.folder", output)):
        if value is not None:
            found.append(f"{key}='''{value.absolute()}'''")
    return found
