"""Commands that have a bundle write: `generate` goes on with a text, `chat` talks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmconv.cli import display, options

if TYPE_CHECKING:
    from llmconv.chat.session import Session


def generate(
    bundle: options.Bundle,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    runtime: options.Runtime = "onnxruntime",
    adapter: options.Switched = None,
    tokens: Annotated[int, typer.Option(min=1, help="Write at most so many tokens.")] = 60,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = 0,
) -> None:
    """Write text with a bundle, on this machine."""
    with _opened(bundle, adapter, runtime, temperature, top_k, top_p, seed) as session:
        from llmconv.decoding.generate import stream_text

        ids = [*session.tokenizer.begin, *session.tokenizer.encode(prompt)]
        answer = session.dialog.query(ids, tokens)
        started = time.monotonic()
        print(prompt, end="", flush=True)
        for piece in stream_text(session.tokenizer, ids, answer):
            print(piece, end="", flush=True)
        print()
        display.note(f"stopped: {session.dialog.reason}; {time.monotonic() - started:.1f} s")


def chat(
    bundle: options.Bundle,
    runtime: options.Runtime = "onnxruntime",
    adapter: options.Switched = None,
    system: Annotated[str, typer.Option(help="What the model is told before the conversation.")] = "",
    prompt: Annotated[str | None, typer.Option(help="Answer this alone; also what comes through a pipe.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="At most so many tokens an answer; by default half of the context.")
    ] = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = 0,
) -> None:
    """Talk with a bundle, on this machine."""
    from llmconv.cli import terminal

    asked = terminal.one_message(prompt)  # before torch is imported
    with _opened(bundle, adapter, runtime, temperature, top_k, top_p, seed) as session:
        from llmconv.chat.chat import Chat

        ids, templated = session.prompt()
        if not templated:
            display.note("no chat template in recipe or checkpoint: the model goes on with the text")
        talk = Chat(session.dialog, ids, system=terminal.clean(system), limit=tokens, trims=templated)
        if asked is None:
            terminal.converse(talk)
        else:
            terminal.answer(talk, asked)


@contextmanager
def _opened(
    folder: Path,
    adapter: str | None,
    runtime: str,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> Iterator[Session]:
    from llmconv.bundle.bundle import Bundle
    from llmconv.plugins.registry import Registry

    stack = ExitStack()
    opened = Bundle(folder, adapter)  # before torch is imported
    with display.progress("importing torch") as step:
        from llmconv.chat.session import open_session

        asked: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        sampling = replace(opened.config.sampling, seed=seed, **{k: v for k, v in asked.items() if v is not None})
        registry = Registry.load()
        step("load", runtime)
        opening = open_session(opened, runtime, sampling, registry)
        session = stack.enter_context(opening)
    with stack:
        yield session
