"""The command that converts a model without a recipe: one is chosen, said, and applied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmconv.cli import bundles, display, options
from llmconv.errors import RecipeError
from llmconv.quantities import bytes_of

if TYPE_CHECKING:
    from llmconv.choosing.choose import Chosen

CONTEXT = 4096
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a GGUF file, package:DISTRIBUTION/PATH.")]
Target = Annotated[str, typer.Option(help="A chipset, or a phone that carries it; 'llmconv targets' lists them.")]
Context = Annotated[int, typer.Option(min=2, help="Positions that the model sees at most.")]
SizeBudget = Annotated[str | None, typer.Option(help="Bytes of all weights at most, such as 1.5GB.")]
Backend = Annotated[str | None, typer.Option(help="The backend, instead of the target's usual one; onnx stops there.")]


def convert(
    model: Model,
    target: Target,
    context: Context = CONTEXT,
    size_budget: SizeBudget = None,
    backend: Backend = None,
    adapters: options.Adapters = None,
    output: Annotated[Path | None, typer.Option(help="The output folder; by default build/<model>.")] = None,
    verify: Annotated[
        bool | None, typer.Option("--verify/--no-verify", help="Prove the result; by default unless it is too large.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle in the output folder.")] = False,
) -> None:
    """Convert a model by a recipe that is chosen for it, and prove the result; go on where an earlier run stopped."""
    from llmconv.recipe.recipe import Recipe

    text = chosen(model, target, context, size_budget, backend, adapters or ()).text
    recipe = Recipe.loads(text, "the chosen recipe", Path.cwd(), options.changes(None, None, output))
    bundles.run(recipe, verify=verify, force=force)


def chosen(
    model: str, target: str, context: int, size_budget: str | None, backend: str | None, adapters: Sequence[str]
) -> Chosen:
    """The recipe for what the command line says, after its notes were shown.

    Raises:
        RecipeError: the size is none, or no model is there.
    """
    from llmconv.recipe.located import named

    budget = None if size_budget is None else bytes_of(size_budget)
    if size_budget is not None and not budget:
        raise RecipeError(f"--size-budget {size_budget}: write it as 1.5GB or 800MB")
    checkpoint, said = named(model)
    if said:
        display.note(said)
    with display.progress("importing torch") as step:
        import llmconv

        wish = llmconv.Wish(checkpoint, target, context, budget, backend, adapters=options.weighted(adapters))
        found = llmconv.choose(wish, progress=step)
    for note in found.draft.notes:
        display.note(note)
    return found
