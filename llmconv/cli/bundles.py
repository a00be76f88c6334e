"""Commands that make, prove, run and export bundles."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from llmconv.cli import display, options

Folder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="An output folder of 'llmconv apply'.")]


def apply(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML recipe.")],
    backend: Annotated[str | None, typer.Option(help="The backend, instead of the recipe's.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The checkpoint's folder, instead of the recipe's.")] = None,
    output: Annotated[Path | None, typer.Option(help="The output folder; by default build/<recipe>.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value: passes.split_model.parts=4.")
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
    started = time.monotonic()
    with display.progress("importing torch") as step, _kept(loaded.folder):
        import llmconv

        bundle = llmconv.apply(loaded, verify=verify, force=force, fresh=fresh, jobs=jobs, progress=step)
    display.show_conversion(bundle, time.monotonic() - started)
    _exit_by(bundle.report.get("proof", []))


def verify(bundle: Folder) -> None:
    """Run the proof of a bundle again."""
    with display.progress("importing torch") as step:
        import llmconv

        opened = llmconv.Bundle(bundle)
        llmconv.prove(opened, progress=step)
    display.show_proof(opened.report["proof"])
    _exit_by(opened.report["proof"])


def generate(
    bundle: Folder,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    runtime: Annotated[str, typer.Option(help="onnxruntime, genai, or qnn: the HTP simulator.")] = "onnxruntime",
    tokens: Annotated[int, typer.Option(min=1, help="Write at most so many tokens.")] = 60,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among so many of the likeliest; 0: among all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Choose among the likeliest of this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the random choices.")] = 0,
) -> None:
    """Write text with a bundle, on this machine."""
    from llmconv.bundle.bundle import Bundle

    opened = Bundle(bundle)  # before torch is imported
    with ExitStack() as stack:
        with display.progress("importing torch") as step:
            from llmconv.bundle.runtime import source_of
            from llmconv.decoding.generate import Sampling, stream_text
            from llmconv.plugins import Registry

            registry = Registry.load()
            source = source_of(opened, registry)
            config, tokenizer = source.config(), source.tokenizer()
            step("load", runtime)
            sampling = Sampling(temperature, top_k, top_p, seed)
            opening = registry.create("runtime", runtime, {}).dialog(opened, sampling, config.eos)
            dialog = stack.enter_context(opening)
        ids = [config.bos, *tokenizer.encode(prompt)]
        answer = dialog.query(ids, tokens)
        started = time.monotonic()
        print(prompt, end="", flush=True)
        for piece in stream_text(tokenizer, ids, answer):
            print(piece, end="", flush=True)
        print()
        display.note(f"stopped: {dialog.reason}; {time.monotonic() - started:.1f} s")


def export(
    bundle: Folder,
    form: Annotated[str, typer.Option("--format", help="genai: ONNX Runtime GenAI's decoder-pipeline.")],
) -> None:
    """Give a finished bundle another runtime's form, from the same weights and encodings."""
    from llmconv.bundle.bundle import Bundle

    opened = Bundle(bundle)  # before torch is imported
    with display.progress("importing torch") as step:
        from llmconv.plugins import Registry

        registry = Registry.load()
        folder = registry.create("exporter", form, {}).export(opened, registry, step)
    display.note(f"{folder}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 1e6:.1f} MB")


@contextmanager
def _kept(output: Path) -> Iterator[None]:
    """After an error, say what an interrupted run has left."""
    try:
        yield
    except BaseException:
        from llmconv.steps import work_of

        if work_of(output).is_dir():
            display.note(f"finished steps are kept in {work_of(output)}; the same command goes on from there")
        raise


def _exit_by(proof: list[dict[str, object]]) -> None:
    if any(check["passed"] is False for check in proof):
        raise typer.Exit(1)
