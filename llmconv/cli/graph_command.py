"""The command that shows a recipe's graphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmconv.cli import display, options
from llmconv.errors import RecipeError
from llmconv.naming import nearest

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from llmconv.graph.model import Graph, Model


def graph(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML recipe, or the name of an installed one.")],
    after: Annotated[str | None, typer.Option(metavar="PASS", help="As it is then; by default before numbers.")] = None,
    name: Annotated[str | None, typer.Option("--graph", help="Which; by default the recipe's last.")] = None,
    part: Annotated[int | None, typer.Option(min=1, help="That part alone.")] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="That layer alone.")] = None,
    diff: Annotated[str | None, typer.Option(metavar="PASS", help="What the pass changes: - before, + after.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="What each pass finds, and what it leaves alone.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write an .svg, or an .onnx of one part, for Netron to draw.")
    ] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for apply.")] = None,
    allow_local_plugins: options.LocalPlugins = False,
) -> None:
    """Show a recipe's graph, a node a line: structural name, op, shape, who made it; no weight is read."""
    from llmconv.recipe.recipe import Recipe

    loaded = Recipe.load(recipe, assignments or [])
    with display.progress("importing torch") as step:
        from llmconv.graph.shown import difference, lines_of
        from llmconv.prepare.look import before_and_after, explained, graphs_after
        from llmconv.prepare.resolve import check

        checked = check(loaded, options.registry_for(loaded, allow_local_plugins))
        step("lay out", loaded.name)
        if output is not None:
            said = [_written(graphs_after(checked, after), name, part, layer, output)]
        elif explain:
            said = list(explained(checked))
        elif diff is not None:
            models = before_and_after(checked, diff)
            old, new = ([line for p in _parts(m, name, part) for line in lines_of(p, layer)] for m in models)
            said = _aligned([(sign, *line.columns()) for sign, line in difference(old, new)])
        else:
            model = graphs_after(checked, after)
            said = _aligned([line.columns() for p in _parts(model, name, part) for line in lines_of(p, layer)])
    for line in said:
        print(line)


def _graph(model: Model, name: str | None, part: int | None) -> Graph:
    found = list(model.graphs)[-1] if name is None else name
    if found not in model.graphs:
        raise RecipeError(f"--graph {found}: the recipe has no such graph{nearest(found, model.graphs)}")
    if part is not None and part > len(model.graphs[found].parts):
        raise RecipeError(f"--part {part}: graph '{found}' has {len(model.graphs[found].parts)} there")
    return model.graphs[found]


def _parts(model: Model, name: str | None, part: int | None) -> Sequence[GraphModule]:
    parts = _graph(model, name, part).parts
    return parts if part is None else [parts[part - 1]]


def _written(model: Model, name: str | None, part: int | None, layer: int | None, file: Path) -> str:
    import onnx

    from llmconv.files import write_text
    from llmconv.graph.drawn import as_svg
    from llmconv.graph.shown import for_netron

    if file.suffix == ".svg":
        write_text(file, as_svg(_parts(model, name, part), layer))
        return f"{file}: open it in a browser"
    if file.suffix != ".onnx":
        raise RecipeError(f"--output {file}: graphs are written as .svg, or as .onnx, which Netron draws")
    if layer is not None:
        raise RecipeError(f"--output {file}: an .onnx holds a whole part; leave --layer out, or write an .svg")
    made = for_netron(_graph(model, name, part), (part or 1) - 1)
    onnx.save(made, file)
    return f"{file}: {len(made.graph.node)} nodes; open it in Netron"


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    kept = list(rows)
    widths = [max(map(len, column)) for column in zip(*kept, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in kept]
