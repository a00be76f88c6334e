"""The command that says what a conversion will need, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from llmconv.cli import display, options
from llmconv.quantities import duration, quantity, size

if TYPE_CHECKING:
    from llmconv.backends.limit import Limit
    from llmconv.planning.additions import Addition
    from llmconv.planning.plan import Plan

_VERDICT = {"ok": "[green]ok[/]", "warning": "[yellow]over[/]", "error": "[red]TOO MUCH[/]"}


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML recipe, or the name of an installed one.")],
    backend: Annotated[str | None, typer.Option(help="The backend, instead of the recipe's.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The checkpoint's folder, instead of the recipe's.")] = None,
    targets: options.Targets = None,
    adapters: options.Adapters = None,
    output: Annotated[Path | None, typer.Option(help="The output folder; by default build/<recipe>.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Build so many parts at once at most.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for apply.")] = None,
    allow_local_plugins: options.LocalPlugins = False,
) -> None:
    """Say what a conversion will need and whether the target holds it; reads the checkpoint's configuration alone."""
    from llmconv.recipe.recipe import Recipe
    from llmconv.work.collector import collector_paused

    loaded = Recipe.load(recipe, options.changes(assignments, checkpoint, output, adapters, targets), backend=backend)
    with display.progress("importing torch") as step, collector_paused():  # importing makes no garbage either
        import llmconv

        step("lay out", loaded.name)
        made = llmconv.plan(loaded, registry=options.registry_for(loaded, allow_local_plugins), jobs=jobs)
    show(made)
    made.require()


def show(made: Plan) -> None:
    """Parts, stages, graphs, limits; figures with ≈ are estimates, the others follow from the graphs."""
    display.show(_parts(made))
    display.show(_stages(made))
    if additions := made.additions:
        display.show(_additions(additions))
    if made.limits:
        display.show(_limits(made.limits, made.chipset.name))
    for limit in made.worst():
        if limit.verdict != "ok":
            print(limit.message(made.chipset.name))
    for caution in made.cautions:
        print(caution)
    memory = "unknown" if made.memory is None else size(made.memory)
    together = "one part after another" if made.at_once == 1 else f"{made.at_once} parts at once"
    display.note(
        f"at hand: memory and swap {memory}, disk {size(made.disk)}; "
        f"≈ {duration(made.seconds)} in all, {together}, proof not counted"
    )


def _parts(made: Plan) -> Table:
    table = Table("part", "layers", "weights", "graph", "inputs", "outputs", title="Parts")
    for part in made.parts:
        for i, graph in enumerate(part.graphs):
            own = (str(part.number + 1), str(part.layers), size(part.weight_bytes)) if not i else ("", "", "")
            table.add_row(*own, graph.label, size(graph.input_bytes), size(graph.output_bytes))
    table.add_row("all", str(sum(p.layers for p in made.parts)), size(made.weight_bytes), "", "", "")
    return table


def _stages(made: Plan) -> Table:
    table = Table("stage", "time", "peak memory", "disk", title="Stages (estimates)")
    for stage in made.stages:
        disk = f"≈ {size(stage.disk)}" if stage.disk else ""
        table.add_row(stage.name, f"≈ {duration(stage.seconds)}", f"≈ {size(stage.memory)}", disk)
    table.add_row("all", f"≈ {duration(made.seconds)}", f"≈ {size(made.memory_need)}", f"≈ {size(made.disk_need)}")
    return table


def _additions(found: list[Addition]) -> Table:
    table = Table("graph", "ar", "context", "time", "peak memory", "disk", title="What each graph adds (estimates)")
    for a in found:
        need = (f"≈ {duration(a.seconds)}", f"≈ {size(a.memory)}", f"≈ {size(a.disk)}")
        table.add_row(a.graph, str(a.ar), str(a.context), *need)
    return table


def _limits(found: list[Limit], chipset: str) -> Table:
    table = Table("part", "limit", "need", "bound", "", title=f"{chipset} (estimates)")
    for limit in found:
        row = (limit.part, limit.what, f"≈ {quantity(limit.need, limit.unit)}", quantity(limit.bound, limit.unit))
        table.add_row(*row, _VERDICT[limit.verdict])
    return table
