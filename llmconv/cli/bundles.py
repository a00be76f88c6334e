"""Commands that make, prove and export bundles."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmconv.cli import display, options

if TYPE_CHECKING:
    from llmconv.backends.backend import Backend
    from llmconv.recipe.recipe import Recipe


def apply(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML recipe.")],
    backend: Annotated[str | None, typer.Option(help="The backend, instead of the recipe's.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The checkpoint's folder, instead of the recipe's.")] = None,
    output: Annotated[Path | None, typer.Option(help="The output folder; by default build/<recipe>.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value: graphs.prompt.ar=128.")
    ] = None,
    verify: Annotated[
        bool | None, typer.Option("--verify/--no-verify", help="Prove the result; by default as the recipe says.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle in the output folder.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do everything again, whatever is finished.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Build so many parts at once at most.")] = None,
) -> None:
    """Convert a checkpoint as a recipe says, and prove the result; go on where an earlier run stopped."""
    from llmconv.recipe.recipe import Recipe

    loaded = Recipe.load(recipe, options.changes(assignments, checkpoint, output), backend=backend)
    run(loaded, verify=verify, force=force, fresh=fresh, jobs=jobs)


def run(recipe: Recipe, *, verify: bool | None, force: bool, fresh: bool = False, jobs: int | None = None) -> None:
    """Apply a recipe and show what came of it; arguments as of `llmconv.apply`."""
    ready = _checked_backend(recipe)
    started = time.monotonic()
    with display.progress("importing torch") as step, _left(recipe.folder):
        import llmconv

        bundle = llmconv.apply(recipe, backend=ready, verify=verify, force=force, fresh=fresh, jobs=jobs, progress=step)
    display.show_conversion(bundle, time.monotonic() - started)
    _exit_by(bundle.report.get("proof", []))


def verify(bundle: options.Bundle) -> None:
    """Run the proof of a bundle again."""
    with display.progress("importing torch") as step:
        import llmconv

        opened = llmconv.Bundle(bundle)
        llmconv.prove(opened, progress=step)
    display.show_proof(opened)
    _exit_by(opened.report["proof"])


def _checked_backend(recipe: Recipe) -> Backend | None:
    """The backend, after it has said what it lacks, before torch is imported.

    None where its plugin has no entry point of its own; or where a bundle is there, which may need no backend any more.
    """
    from llmconv.bundle.bundle import MANIFEST
    from llmconv.plugins.registry import Registry

    name = recipe.backend.name
    registry = Registry.load("chipsets", name)
    if name not in registry.of_kind("backend") or (recipe.folder / MANIFEST).is_file():
        return None
    backend: Backend = registry.create("backend", name, recipe.backend.options)
    backend.check(registry.chipset(recipe.target.name))
    return backend


def export(
    bundle: options.Bundle,
    form: Annotated[str, typer.Option("--format", help="genai: ONNX Runtime GenAI's decoder-pipeline.")],
) -> None:
    """Give a finished bundle another runtime's form, from the same weights and encodings."""
    from llmconv.bundle.bundle import Bundle

    opened = Bundle(bundle)  # before torch is imported
    with display.progress("importing torch") as step:
        from llmconv.plugins.registry import Registry

        registry = Registry.load()
        folder = registry.create("exporter", form, {}).export(opened, registry, step)
    display.note(f"{folder}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 1e6:.1f} MB")


@contextmanager
def _left(output: Path) -> Iterator[None]:
    """After an error, say what an interrupted run has left."""
    try:
        yield
    except BaseException as error:
        from llmconv.work.folder import work_of

        for line in getattr(error, "__notes__", ()):
            display.note(line)

        if work_of(output).is_dir():
            display.note(f"finished steps are in {work_of(output)}; the same command goes on from there")
        raise


def _exit_by(proof: list[dict[str, object]]) -> None:
    if any(check["passed"] is False for check in proof):
        raise typer.Exit(1)
