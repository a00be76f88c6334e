"""The command that says which weights the fewest bits cost most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from llmconv.cli import display
from llmconv.errors import RecipeError

if TYPE_CHECKING:
    from llmconv.bundle.bundle import Bundle
    from llmconv.evaluation.sensitivity import Sensitivity

SHOWN, BAR = 20, 24  # weights in the table; characters of the longest bar


def sensitivity(
    model: Annotated[
        Path, typer.Argument(metavar="RECIPE|BUNDLE", help="A recipe, which is converted to ONNX first; or a bundle.")
    ],
    budget: Annotated[float, typer.Option(min=0, help="Bytes that 8 bits may take more, per cent of all.")] = 10.0,
    text: Annotated[Path | None, typer.Option(help="A text; by default the recipe's calibration text.")] = None,
    windows: Annotated[int, typer.Option(min=1, help="Of the text, spread over it.")] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Of a window.")] = 256,
) -> None:
    """Say what each weight's rounding costs at the logits, and write the recipe lines that give the worst 8 bits."""
    with display.progress("importing torch") as step, _converted(model, step) as bundle:
        from llmconv.bundle.weights import BundleStore
        from llmconv.evaluation.evaluate import windows_of
        from llmconv.evaluation.sensitivity import chosen, sensitivities
        from llmconv.evaluation.subject import Subject
        from llmconv.plugins.registry import Registry

        subject = Subject(bundle, Registry.load(), step)
        calibration = subject.recipe.calibration
        if text is None and calibration is None:
            raise RecipeError("the recipe names no calibration text; give one by --text")
        given = calibration.text if text is None else text.expanduser()  # type: ignore[union-attr]
        found = windows_of(subject.described, given, windows, tokens)
        with display.bars() as count:
            costs = sensitivities(subject, found, count)
        store = BundleStore(bundle.folder)
        total = sum(store.place(name).nbytes for name in store.index)
    taken = chosen(costs, total, budget / 100)
    _show(costs, {one.name for one in taken}, len(found), len(found[0]))
    more, gone = sum(one.more for one in taken), sum(one.kl for one in taken)
    display.say(
        f"\n# {len(taken)} weights, {more / 1e6:.2f} MB more ({more / total:.1%}), "
        f"of a divergence of {sum(one.kl for one in costs):.4f} nats {gone:.4f} less\n[passes.weights]  # of w4a16"
    )
    for one in taken:
        display.say(f'"{one.name}" = {{ bits = 8 }}')


@contextmanager
def _converted(model: Path, step: display.Step) -> Iterator[Bundle]:
    """The bundle, or one that a recipe is converted to, up to ONNX, for as long as it is looked at."""
    import llmconv
    from llmconv.recipe.overrides import quoted

    if not model.is_file():
        yield llmconv.Bundle(model)
        return
    with TemporaryDirectory() as folder:
        override = [f"output.folder={quoted(f'{folder}/bundle')}"]
        yield llmconv.apply(llmconv.Recipe.load(model, override, backend="onnx"), verify=False, progress=step)


def _show(costs: list[Sensitivity], wide: set[str], windows: int, tokens: int) -> None:
    table = Table(title=f"Divergence by one weight's rounding, {windows} windows of {tokens} tokens")
    table.add_column("weight", overflow="fold")
    for column in ("nats", "", "8 bits"):
        table.add_column(column, no_wrap=True)
    top = max((one.kl for one in costs), default=0.0) or 1.0
    for one in costs[:SHOWN]:
        bar = "█" * max(1, round(BAR * one.kl / top))
        table.add_row(one.name, f"{one.kl:.6f}", bar, "yes" if one.name in wide else "")
    display.show(table)
    if len(costs) > SHOWN:
        display.say(f"and {len(costs) - SHOWN} more")
