"""The command that looks at this machine and says what is missing."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from llmconv.cli import display

MISSING = 2  # exit code, as of an error
_STATE = {"ok": "[green]ok[/]", "optional": "[yellow]not here[/]", "missing": "[red]MISSING[/]"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Look at this machine, and say what is missing and what to do; exit code 2 where a shipped recipe needs it."""
    with display.progress("loading plugins") as step:
        from llmconv.doctor.examine import examine
        from llmconv.plugins.registry import Registry

        found = examine(Registry.load(), lambda what: step("look at", what))
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False))
    else:
        table = Table("what", "found", "")
        for one in found:
            table.add_row(escape(one.what), escape(one.found), _STATE[one.state])
        display.show(table)
        for one in sorted((one for one in found if one.remedy), key=lambda one: one.state):
            display.say(f"{one.what}: {one.remedy}")
    if any(one.state == "missing" for one in found):
        raise typer.Exit(MISSING)
    display.note("nothing is missing that recipes which come with llmconv need")
