"""`llmconv push` and `llmconv bench`: a bundle on a phone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmconv import Bundle, RecipeError
from llmconv_plugins.phones.adb import Adb
from llmconv_plugins.phones.bench import Measured, bench
from llmconv_plugins.phones.files import megabytes
from llmconv_plugins.phones.push import push

PROMPT_TEXT = "Write a short story about a lighthouse."
pushing = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
measuring = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="An output folder of 'llmconv apply'.")]
Serial = Annotated[
    str | None,
    typer.Option(metavar="NUMBER", envvar="ANDROID_SERIAL", help="Which phone, where several are plugged in."),
]


@pushing.command()
def push_bundle(
    bundle: BundleFolder,
    sdk: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A QAIRT SDK, whose Genie and libraries for the chip go along."),
    ] = None,
    serial: Serial = None,
) -> None:
    """Bring a bundle to a phone through adb, and with --sdk what runs it there; what is there already stays."""
    opened = Bundle(bundle)
    adb = Adb.connect(opened.folder, serial)
    done = push(opened, adb, None if sdk is None else sdk.expanduser().absolute(), _say())
    Console(highlight=False).print(f"{done.place}: {megabytes(done.sent)} pushed, {megabytes(done.kept)} there before")


@measuring.command()
def bench_bundle(
    bundle: BundleFolder,
    through_adb: Annotated[bool, typer.Option("--adb", help="On a phone, through adb.")] = False,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What Genie is given.")] = PROMPT_TEXT,
    tokens: Annotated[int | None, typer.Option(min=2, help="Of an answer, at most.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="So many times, the model loaded anew each time.")] = 3,
    serial: Serial = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs, each run by itself.")] = False,
) -> None:
    """Measure a pushed bundle on a phone: tokens a second, time to the first token, temperature."""
    if not through_adb:
        raise RecipeError("bench: say where to measure; --adb takes the phone that is plugged in")
    opened = Bundle(bundle)
    adb = Adb.connect(opened.folder, serial)
    measured = bench(opened, adb, prompt, tokens, runs, _say())
    if as_json:
        typer.echo(json.dumps(asdict(measured), indent=2))
    else:
        _show(measured)


def _say() -> Callable[[str], None]:
    console = Console(stderr=True, highlight=False)
    return lambda line: console.print(escape(line), style="dim", soft_wrap=True)


def _show(measured: Measured) -> None:
    units = ("load\ns", "prompt\ntokens", "prompt\ntokens/s", "first token\nms", "answer\ntokens", "answer\ntokens/s")
    table = Table("run", title=f"{measured.chip}, measured by Genie")
    for name in units:
        table.add_column(name, justify="right")
    for i, run in enumerate(measured.runs):
        rates = (f"{run.prompt_rate:.1f}", f"{run.first_token * 1000:.1f}", str(run.tokens), f"{run.rate:.2f}")
        table.add_row(str(i + 1), f"{run.load:.2f}", str(run.prompt_tokens), *rates)
    first, rate = (median(getattr(run, name) for run in measured.runs) for name in ("first_token", "rate"))
    table.add_row("median", "", "", "", f"{first * 1000:.1f}", "", f"{rate:.2f}")
    console = Console(highlight=False)
    console.print(table)
    qairt = f"QAIRT {measured.qairt}; " if measured.qairt else ""
    console.print(f"{qairt}before: {measured.before}; after: {measured.after}", soft_wrap=True)
