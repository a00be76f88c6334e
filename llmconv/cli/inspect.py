"""The command that shows a finished bundle's figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from llmconv.cli import display

if TYPE_CHECKING:
    from llmconv.bundle.bundle import Bundle


def inspect(
    what: Annotated[
        str, typer.Argument(metavar="BUNDLE|MODEL", help="An output folder of 'llmconv apply', or a model.")
    ],
    target: Annotated[str | None, typer.Option(help="Of a model: the chipset or phone to choose a recipe for.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Of a model: as JSON.")] = False,
) -> None:
    """Show what a bundle holds and how its conversion went; or what a model is, and how it would be converted."""
    from llmconv.bundle.bundle import MANIFEST, Bundle

    folder = Path(what).expanduser()
    if (folder / MANIFEST).is_file() or (folder.is_dir() and not any(folder.iterdir())):  # which says what is wrong
        _bundle(Bundle(folder))
    else:
        _model(what, target, as_json)


def _model(model: str, target: str | None, as_json: bool) -> None:
    import json

    from llmconv.recipe.located import named

    checkpoint, said = named(model)
    if said:
        display.note(said)
    with display.progress("importing torch") as step:
        from llmconv.choosing.inspected import inspect as look

        found = look(checkpoint, target, progress=step)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    table = Table(box=None, show_header=False)
    for name, value in found.facts.items():
        table.add_row(name.replace("_", " "), escape(_plain(value)))
    display.show(table, None if display.draws() else display.PIPED)
    for line in found.unusual:
        display.say(f"note: {line}")
    if found.chosen is not None:
        from llmconv.cli.plan_command import show as show_plan

        display.say("")
        display.say(found.chosen.text)
        show_plan(found.chosen.plan)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} tensors of {kind}" for kind, count in value.items()) or "not told"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _bundle(opened: Bundle) -> None:
    from llmconv.report.contents import sections
    from llmconv.report.figures import headline

    display.say(headline(opened))
    for section in sections(opened):
        for table in section.tables:
            display.show_figures(table)
