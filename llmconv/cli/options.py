"""What several commands take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmconv.errors import RecipeError

if TYPE_CHECKING:
    from llmconv.plugins.registry import Registry
    from llmconv.recipe.recipe import Recipe

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="An output folder of 'llmconv apply'.")]
Runtime = Annotated[
    str, typer.Option(help="onnxruntime, torch, or one for the phone's NPU; 'llmconv passes' lists all.")
]
LocalPlugins = Annotated[
    bool, typer.Option("--allow-local-plugins", help="Run the Python files that the recipe names as plugins.")
]
_OWN = "By default as the checkpoint asks for it."
Temperature = Annotated[float | None, typer.Option(min=0, help=f"0 takes the likeliest token each time. {_OWN}")]
TopK = Annotated[int | None, typer.Option(min=0, help=f"Choose among so many of the likeliest; 0: among all. {_OWN}")]
TopP = Annotated[
    float | None, typer.Option(min=0, max=1, help=f"Choose among the likeliest of this probability. {_OWN}")
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(min=0.1, help=f"Above 1: make what the text holds already less likely. {_OWN}")
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="End before this text; again for several."),
]
Schema = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="Write JSON that it allows; in Genie alone."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the random choices.")]


Targets = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="NAME", help="The chipset or device, instead of the recipe's; again for several."),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="FOLDER[=WEIGHT]", help="An adapter (PEFT) to merge; again for several."),
]


Switched = Annotated[
    str | None, typer.Option("--adapter", metavar="NAME", help="Of the bundle's adapters, the one to switch on.")
]


def registry_for(recipe: Recipe, allowed: bool) -> Registry:
    """All installed plugins, and, where that is allowed, the recipe's own files.

    Raises:
        RecipeError: it names files, and they were not allowed.
    """
    from llmconv.plugins.registry import Registry

    registry = Registry.load()
    for file in recipe.plugins if allowed else ():
        registry.add_file(file)
    recipe.require(registry)
    return registry


def changes(
    assignments: Sequence[str] | None,
    checkpoint: Path | None,
    output: Path | None,
    adapters: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> list[str]:
    """What the command line changes in a recipe."""
    from llmconv.recipe.located import elsewhere
    from llmconv.recipe.overrides import quoted

    found = list(assignments or [])
    if adapters:
        each = weighted(adapters).items()
        entries = ", ".join(f"{quoted(folder)} = {weight}" for folder, weight in each)
        found.append(f"model.adapter={{ {entries} }}")
    if targets:
        names = ", ".join(map(quoted, targets))
        found.append(f"target.name={names if len(targets) == 1 else f'[{names}]'}")
    for key, value in (("model.checkpoint", checkpoint), ("output.folder", output)):
        if value is not None:
            given = value if elsewhere(value) else value.expanduser().absolute()
            found.append(f"{key}={quoted(given)}")
    return found


def weighted(adapters: Sequence[str]) -> dict[Path, float]:
    """The adapters that the command line names, each with its weight.

    Raises:
        RecipeError: a weight is none.
    """
    return dict(map(_weighted, adapters))


def _weighted(adapter: str) -> tuple[Path, float]:
    """A folder and a weight, which is 1 where none is written.

    Raises:
        RecipeError: the weight is none.
    """
    folder, _, written = adapter.rpartition("=")
    try:
        weight = float(written)
    except ValueError:
        return Path(adapter).expanduser().absolute(), 1.0
    if not math.isfinite(weight):
        raise RecipeError(f"--adapter {adapter}: the weight is a finite number")
    return Path(folder).expanduser().absolute(), weight
