"""The command that shows a finished bundle's figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from llmconv.cli import display

if TYPE_CHECKING:
    from llmconv.report import figures

PIPED = 200  # characters of a line that no terminal breaks


def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="An output folder of 'llmconv apply'.")],
) -> None:
    """Show what a bundle holds and how its conversion went: the figures of its report.html."""
    from llmconv.bundle.bundle import Bundle
    from llmconv.report.contents import sections
    from llmconv.report.figures import headline

    opened = Bundle(bundle)
    display.say(headline(opened))
    for section in sections(opened):
        for table in section.tables:
            _show(table)


def _show(found: figures.Table) -> None:
    marked = "" if found.basis == "given" else f" ({found.basis})"
    lines = box.SIMPLE_HEAD if display.draws() else None
    table = Table(box=lines)
    for i, column in enumerate(found.columns):
        table.add_column(escape(column), justify="left" if i < found.texts else "right", overflow="fold")
    for row in found.rows[: found.first or None]:
        table.add_row(*map(escape, row))
    display.say("")
    display.say(found.caption + marked, style="bold")
    display.show(table, None if display.draws() else PIPED)
    hidden = len(found.rows) - found.first if found.first else 0
    if hidden > 0:
        display.say(f"{hidden} more in report.html")
    if found.note:
        display.say(found.note)
