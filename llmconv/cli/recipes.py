"""Commands on recipes: those that come with llmconv, checking one, and the schema of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llmconv.cli import convert_command, options
from llmconv.cli.convert_command import CONTEXT
from llmconv.errors import RecipeError

app = typer.Typer(help="List, copy and check recipes.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """List the recipes that come with llmconv, and those that plugins bring; commands take their names."""
    from llmconv.plugins.listing import first_comment
    from llmconv.plugins.registry import Registry
    from llmconv.recipe import shipped

    for distribution, file in shipped.found(Registry.load()):
        brought = "" if distribution == "llmconv" else f" ({distribution})"
        print(f"{file.stem:24} {first_comment(file)}{brought}".rstrip())


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="As 'llmconv recipe list' gives it.")],
    folder: Annotated[Path, typer.Argument(help="Where to.")] = Path(),
) -> None:
    """Copy a recipe that comes with llmconv or a plugin, and its data."""
    from llmconv.recipe import shipped

    for path in shipped.copy(name, folder):
        print(path)


@app.command("for")
def for_(
    model: convert_command.Model,
    target: convert_command.Target,
    context: convert_command.Context = CONTEXT,
    size_budget: convert_command.SizeBudget = None,
    backend: convert_command.Backend = None,
    adapters: options.Adapters = None,
    output: Annotated[Path | None, typer.Option(help="The file to write; by default the terminal.")] = None,
) -> None:
    """Write the recipe that 'llmconv convert' would choose, with the reason of each choice."""
    from llmconv.files import write_text

    chosen = convert_command.chosen(model, target, context, size_budget, backend, adapters or ())
    if output is None:
        print(chosen.text, end="")
    elif output.exists():
        raise RecipeError(f"{output}: exists; choose another file or remove it")
    else:
        write_text(output, chosen.text)


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML recipe, or the name of an installed one.")],
    assignments: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for apply.")] = None,
    allow_local_plugins: options.LocalPlugins = False,
) -> None:
    """Check a recipe without converting: every name, every option, and that its files are there."""
    from llmconv.recipe.recipe import Recipe

    loaded = Recipe.load(recipe, assignments or [])  # before torch is imported

    from llmconv.prepare.resolve import check as check_recipe

    registry = options.registry_for(loaded, allow_local_plugins)
    loaded.check(registry)
    checked = check_recipe(loaded, registry, weights=False)
    print(
        f"{recipe}: {checked.config.family}, {checked.config.layers} layers, "
        f"{len(checked.passes)} passes; nothing wrong found"
    )


@app.command()
def schema(
    matrix: Annotated[bool, typer.Option("--matrix", help="That of a matrix, as 'llmconv batch' takes it.")] = False,
) -> None:
    """Print the JSON Schema of recipes, with the options of every pass and backend that is installed."""
    if matrix:
        from llmconv.batch.matrix import matrix_schema

        print(json.dumps(matrix_schema(), indent=2))
        return
    from llmconv.plugins.registry import Registry
    from llmconv.recipe.schema import json_schema

    print(json.dumps(json_schema(Registry.load()), indent=2))
