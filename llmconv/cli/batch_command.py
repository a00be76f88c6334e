"""The command that converts a matrix of recipes, checkpoints, targets and contexts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmconv.cli import display, options

if TYPE_CHECKING:
    from llmconv.batch.child import Ended
    from llmconv.batch.matrix import Member

CHILD = "llmconv.cli.batch_child"


def batch(
    matrix: Annotated[Path, typer.Argument(metavar="MATRIX", help="TOML: recipes, checkpoints, targets, contexts.")],
    output: Annotated[Path | None, typer.Option(help="The folder of all bundles; by default build/<matrix>.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of every recipe.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace bundles that something else has made.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Build so many parts at once at most.")] = None,
    allow_local_plugins: options.LocalPlugins = False,
) -> None:
    """Convert every recipe with every checkpoint, target and context; go on where an earlier run stopped."""
    from llmconv.batch.matrix import Matrix

    folder = (output or Path.cwd() / "build" / matrix.stem).expanduser().resolve()
    members = Matrix.load(matrix).members(folder, assignments or [])
    further = [*(["--force"] if force else []), *(["--jobs", str(jobs)] if jobs else [])]
    further += ["--allow-local-plugins"] if allow_local_plugins else []
    with display.listing("importing torch") as (doing, done):
        from llmconv.batch.page import conversions, headline
        from llmconv.batch.run import run
        from llmconv.plugins.registry import Registry

        registry = Registry.load()
        for member in members:
            member.recipe.chipsets(registry)
        results = run(
            matrix.stem,
            members,
            folder,
            partial(_convert, doing=doing, further=further),
            partial(options.registry_for, allowed=allow_local_plugins),
            lambda result: done(f"{result.name}: {result.error or result.state}"),
        )
    display.show_figures(conversions(results))
    display.say(f"{headline(results)} {folder}")
    if any(result.state != "done" for result in results.conversions):
        raise typer.Exit(1)


def _convert(member: Member, others: Sequence[Path], *, doing: display.Doing, further: Sequence[str]) -> Ended:
    from llmconv.batch.child import run
    from llmconv.batch.page import log_of

    changes = [argument for change in member.changes for argument in ("--set", change)]
    reuse = [argument for other in others for argument in ("--reuse", str(other))]
    command = [sys.executable, "-m", CHILD, str(os.getpid()), "apply", str(member.file), *changes, *reuse, *further]
    doing(member.name)
    log = member.folder.with_name(log_of(member.name))
    return run(command, log, lambda line: doing(f"{member.name}: {line}"))
