"""What several commands take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="An output folder of 'llmconv apply'.")]
Runtime = Annotated[
    str, typer.Option(help="onnxruntime, torch, or one for the phone's NPU; 'llmconv passes' lists all.")
]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")]
TopK = Annotated[int, typer.Option(min=0, help="Choose among so many of the likeliest; 0: among all.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Choose among the likeliest of this probability.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the random choices.")]


def changes(assignments: Sequence[str] | None, checkpoint: Path | None, output: Path | None) -> list[str]:
    """What the command line changes in a recipe."""
    found = list(assignments or [])
    for key, value in (("model.checkpoint", checkpoint), ("output.folder", output)):
        if value is not None:
            found.append(f"{key}='''{value.absolute()}'''")
    return found
