"""What the commands show: progress on stderr, tables on stdout."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from llmconv.bundle.bundle import Bundle
    from llmconv.report import figures

Step = Callable[[str, str], None]
Doing = Callable[[str], None]
PIPED = 200  # characters of a line that no terminal breaks

_out, _err = Console(), Console(stderr=True, highlight=False)
_VERDICT = {True: "[green]ok[/]", False: "[red]FAILED[/]", None: ""}


def draws() -> bool:
    """Whether stdout is a terminal that lines can be drawn on; anything else takes long lines of plain text."""
    return _out.is_terminal and not _out.is_dumb_terminal


def show(table: Table, width: int | None = None) -> None:
    """Print a table, at most `width` characters wide; by default as wide as the terminal."""
    (_out if width is None else Console(width=width)).print(table)


def say(text: str, style: str | None = None) -> None:
    """A line of text beside tables."""
    _out.print(escape(text), style=style, highlight=False, soft_wrap=not draws())


def note(text: str) -> None:
    """One line beside the result, on stderr."""
    _err.print(escape(text), style="dim", soft_wrap=True)


def show_figures(found: figures.Table) -> None:
    """A table of figures, as a page has it too."""
    marked = "" if found.basis == "given" else f" ({found.basis})"
    lines = box.SIMPLE_HEAD if draws() else None
    table = Table(box=lines)
    for i, column in enumerate(found.columns):
        table.add_column(escape(column), justify="left" if i < found.texts else "right", overflow="fold")
    for row in found.rows[: found.first or None]:
        table.add_row(*map(escape, row))
    say("")
    say(found.caption + marked, style="bold")
    show(table, None if draws() else PIPED)
    hidden = len(found.rows) - found.first if found.first else 0
    if hidden > 0:
        say(f"{hidden} more in report.html")
    if found.note:
        say(found.note)


@contextmanager
def warnings_off() -> Iterator[None]:
    """Leave out what is logged as a warning, of what is shown anyway."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def progress(first: str) -> Iterator[Step]:
    """A line that says what is being done, and behind it one line for each thing done with its seconds.

    Args:
        first: what is done first.

    Yields:
        What is called with a stage and an item before each piece of work, as `llmconv.apply` does.
    """
    began, doing = time.monotonic(), first

    def finish() -> None:
        _err.print(f"{time.monotonic() - began:6.1f} s  {escape(doing)}", style="dim")

    def step(stage: str, item: str) -> None:
        nonlocal began, doing
        finish()
        began, doing = time.monotonic(), f"{stage} {item}"
        status.update(escape(doing))

    with _err.status(escape(first)) as status:
        yield step
    finish()


@contextmanager
def listing(first: str) -> Iterator[tuple[Doing, Doing]]:
    """A line that says what is being done, and is replaced by the next; and a line for each thing that is done."""
    with _err.status(escape(first)) as status:
        yield (
            lambda text: status.update(escape(" ".join(text.split()))),
            lambda text: _err.print(escape(text), style="dim", soft_wrap=True),
        )


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is counted: its name, how much is done and of how much."""
    from rich.progress import Progress

    with Progress(console=_err) as shown:
        known: dict[str, Any] = {}

        def count(name: str, done: int, of: int) -> None:
            if name not in known:
                known[name] = shown.add_task(escape(name), total=of)
            shown.update(known[name], completed=done)

        yield count


def show_conversion(bundle: Bundle, seconds: float) -> None:
    """The closing tables: passes, files, proof."""
    report = bundle.report
    table = Table("pass", "seconds", "nodes", "largest difference of a logit", title="Passes")
    for entry in report["passes"]:
        nodes = ", ".join(f"{name} {before} → {after}" for name, (before, after) in entry["nodes"].items())
        error = max(entry["errors"].values(), default=None)
        table.add_row(entry["name"], f"{entry['seconds']:.2f}", nodes, "" if error is None else f"{error:.1e}")
    show(table)
    show(_files(bundle, {b["file"]: b for b in report["binaries"]}))
    if "proof" in report:
        show_proof(bundle)
    _out.print(f"{escape(str(bundle.folder))}: {seconds:.0f} s", soft_wrap=True)


def _files(bundle: Bundle, binaries: dict[str, dict[str, Any]]) -> Table:
    table = Table("file", "MB", "compiled in", "peak memory", title="Parts")
    for name, entry in bundle.manifest["files"].items():
        if not name.startswith("onnx/") and name not in binaries:
            continue
        built = binaries.get(name)
        seconds = f"{built['seconds']:.1f} s{' (kept)' if built['kept'] else ''}" if built else ""
        memory = f"{built['peak_rss'] / 1e9:.2f} GB" if built and built["peak_rss"] else ""
        table.add_row(name, f"{entry['bytes'] / 1e6:.2f}", seconds, memory)
    return table


def show_proof(bundle: Bundle) -> None:
    """The proof, a line a check; where one failed, what to look at first."""
    proof: list[dict[str, Any]] = bundle.report["proof"]
    table = Table("", "check", "measured", "must be", "", title="Proof")
    for check in proof:
        row = (str(check["step"]), check["name"], check["measured"], check["bound"])
        table.add_row(*map(escape, row), _VERDICT[check["passed"]])
    show(table)
    failed = [c for c in proof if c["passed"] is False]
    if failed:
        from llmconv.report.sqnr import first_fall

        if fall := first_fall(bundle):
            _err.print(escape(fall), style="red", soft_wrap=True)
        for advice in dict.fromkeys(c["advice"] for c in failed if c.get("advice")):
            _err.print(escape(f"to try: {advice}"), style="red", soft_wrap=True)
        _err.print(f"{len(failed)} of {len(proof)} checks failed", style="red")
