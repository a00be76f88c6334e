"""Commands that make, prove and export bundles."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmconv.cli import display, options

if TYPE_CHECKING:
    from llmconv.backends.backend import Backend
    from llmconv.recipe.recipe import Recipe


def apply(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML recipe, or the name of an installed one.")],
    backend: Annotated[str | None, typer.Option(help="The backend, instead of the recipe's.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The checkpoint's folder, instead of the recipe's.")] = None,
    targets: options.Targets = None,
    adapters: options.Adapters = None,
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
    reuse: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Copy what is the same from another output folder; again for several."),
    ] = None,
    executor: Annotated[str | None, typer.Option(help="Who builds the parts: local, dask, or a plugin's.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Where the executor's workers are known: tcp://host:8786.")
    ] = None,
    allow_local_plugins: options.LocalPlugins = False,
) -> None:
    """Convert a checkpoint as a recipe says, and prove the result; go on where an earlier run stopped."""
    from llmconv.recipe.recipe import Recipe

    changes = options.changes(assignments, checkpoint, output, adapters, targets)
    changes += [f"executor.scheduler={json.dumps(scheduler)}"] if scheduler is not None else []
    loaded = Recipe.load(recipe, changes, backend=backend, executor=executor)
    run(
        loaded,
        verify=verify,
        force=force,
        fresh=fresh,
        jobs=jobs,
        reuse=reuse or (),
        allow_local_plugins=allow_local_plugins,
    )


def run(
    recipe: Recipe,
    *,
    verify: bool | None,
    force: bool,
    fresh: bool = False,
    jobs: int | None = None,
    reuse: Sequence[Path] = (),
    allow_local_plugins: bool = False,
) -> None:
    """Apply a recipe and show what came of it; arguments as of `llmconv.apply`."""
    ready = _checked_backend(recipe)
    started = time.monotonic()
    with display.progress("importing torch") as step, _left(recipe.folder):
        import llmconv

        registry = options.registry_for(recipe, allow_local_plugins)
        bundle = llmconv.apply(
            recipe,
            registry=registry,
            backend=ready,
            verify=verify,
            force=force,
            fresh=fresh,
            jobs=jobs,
            reuse=reuse,
            progress=step,
        )
    display.show_conversion(bundle, time.monotonic() - started)
    _exit_by(bundle.report.get("proof", []))


def verify(bundle: options.Bundle, allow_local_plugins: options.LocalPlugins = False) -> None:
    """Run the proof of a bundle again."""
    with display.progress("importing torch") as step:
        import llmconv
        from llmconv.prepare.remake import recipe_of

        opened = llmconv.Bundle(bundle)
        registry = options.registry_for(recipe_of(opened), allow_local_plugins)
        llmconv.prove(opened, registry=registry, progress=step)
    display.show_proof(opened)
    _exit_by(opened.report["proof"])


def _checked_backend(recipe: Recipe) -> Backend | None:
    """The backend, after it has said what it lacks, before torch is imported.

    None where its plugin has no entry point of its own; or where a bundle is there, which may need no backend any more.
    """
    from llmconv.backends.backend import check_chipsets
    from llmconv.bundle.bundle import MANIFEST
    from llmconv.plugins.registry import Registry

    name = recipe.backend.name
    registry = Registry.load("chipsets", name)
    if name not in registry.of_kind("backend") or (recipe.folder / MANIFEST).is_file():
        return None
    backend: Backend = registry.create("backend", name, recipe.backend.options)
    check_chipsets(backend, recipe.chipsets(registry))
    return backend


def export(
    bundle: options.Bundle,
    form: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORM",
            help="genie, geniex: what a phone loads; epcontext: what onnxruntime-qnn runs on a laptop; genai: ONNX "
            "Runtime GenAI's pipeline.",
        ),
    ],
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a bundle for several chipsets: which; by default the first.")
    ] = None,
) -> None:
    """Give a finished bundle another runtime's form, from the same weights and encodings."""
    from llmconv.bundle.bundle import Bundle

    opened = Bundle(bundle)  # before torch is imported
    with display.progress("importing torch") as step:
        from llmconv.plugins.registry import Registry

        registry = Registry.load()
        if target is not None:
            opened = opened.for_target(registry.chipset(target).model)
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
