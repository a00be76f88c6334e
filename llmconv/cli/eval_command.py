"""The command that measures."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from llmconv.cli import display
from llmconv.errors import RecipeError

if TYPE_CHECKING:
    from llmconv.evaluation.evaluator import Figure
    from llmconv.evaluation.subject import Subject
    from llmconv.plugins.registry import Registry
    from llmconv.prepare.resolve import Checked


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="BUNDLE|RECIPE", help="A bundle; or a recipe, whose checkpoint is.")],
    tasks: Annotated[str, typer.Option(help="Evaluators, with commas between; 'llmconv passes' lists them.")] = (
        "perplexity,agreement"
    ),
    on: Annotated[
        str | None,
        typer.Option(help="float (the checkpoint) and runtimes, with commas between; float, and of a bundle its own."),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="A text; by default the recipe's held-out one.")] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Windows at most, spread over the text; all by default.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Of a window; by default 2048, or as many as the context holds."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to a file as well.")] = None,
) -> None:
    """Measure a model on a text: its perplexity, and how far runtimes are from the checkpoint in float."""
    if json is not None:
        _check_writable(json)
    with display.progress("importing torch") as step:
        from llmconv.decoding.decoder import whole_runs, widest
        from llmconv.evaluation.evaluate import TOKENS, check_on, evaluate, windows_of
        from llmconv.evaluation.evaluator import FLOAT
        from llmconv.plugins.registry import Registry
        from llmconv.prepare.resolve import Checked

        registry = Registry.load()
        evaluators = [registry.create("evaluator", name, {}) for name in _names(tasks, "--tasks")]
        subject = _opened(model, registry)
        if isinstance(subject, Checked):
            checked, runtimes, context = subject, [], subject.config.positions
        else:
            checked, runtimes = subject.described, list(subject.backend.runtimes[:1])
            context = whole_runs(widest(subject.bundle.graphs.values()))
        names = [FLOAT, *runtimes] if on is None else _names(on, "--on")
        check_on(subject, names)
        step("read", "text")
        held = text or checked.recipe.verify.text
        if held is None:
            raise RecipeError("the recipe names no held-out text; give one by --text")
        found = windows_of(checked, held.expanduser(), windows, tokens or min(TOKENS, context))
    with display.bars() as count:
        figures = evaluate(subject, evaluators, names, found, count)
    _show(figures, len(found), len(found[0]))
    if json is not None:
        from llmconv.files import write_json

        write_json(json, [asdict(f) for f in figures])


def _check_writable(file: Path) -> None:
    """Before the work, not after it."""
    if file.is_dir():
        raise RecipeError(f"--json {file}: is a folder; give a file")
    if not file.absolute().parent.is_dir():
        raise RecipeError(f"--json {file}: no such folder '{file.parent}'; make it first")
    if not os.access(file.absolute().parent, os.W_OK):
        raise RecipeError(f"--json {file}: '{file.parent}' cannot be written to; choose another place")


def _names(given: str, option: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in given.split(",")))
    if "" in names:
        raise RecipeError(f"{option} {given!r}: holds an empty name")
    return names


def _opened(model: Path, registry: Registry) -> Subject | Checked:
    """A bundle, or a recipe."""
    from llmconv.bundle.bundle import Bundle
    from llmconv.evaluation.subject import Subject
    from llmconv.prepare.resolve import check
    from llmconv.recipe.recipe import Recipe

    if not model.is_file():
        return Subject(Bundle(model), registry, lambda _stage, _item: None)
    return check(Recipe.load(model).model_copy(update={"calibration": None}), registry, calibrated=True)


def _show(figures: list[Figure], windows: int, tokens: int) -> None:
    table = Table(title=f"{windows} windows of {tokens} tokens")
    for column in ("task", "metric", "on", "value", "standard error", "positions"):
        table.add_column(column)
    for f in figures:
        error = "" if f.error is None else f"{f.error:.4g}"
        table.add_row(f.task, f.metric, f.on, f"{f.value:.5g}", error, str(f.count))
    display.show(table)
