"""Commands that have a bundle write: `generate` goes on with a text, `chat` talks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmconv.cli import display, options
from llmconv.errors import LlmconvError

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
    repetition_penalty: options.RepetitionPenalty = None,
    stop: options.Stop = None,
    json_schema: options.Schema = None,
    seed: options.Seed = 0,
) -> None:
    """Write text with a bundle, on this machine."""
    asked = _asked(temperature, top_k, top_p, repetition_penalty, json_schema)
    with _opened(bundle, adapter, runtime, asked, seed) as session:
        from llmconv.decoding.generate import STOPPED, stream_text, until

        stops = _stops(session, stop)
        ids = [*session.tokenizer.begin, *session.tokenizer.encode(prompt)]
        answer = session.dialog.query(ids, tokens)
        started = time.monotonic()
        print(prompt, end="", flush=True)
        for piece in until(stream_text(session.tokenizer, ids, answer), stops):
            print(piece, end="", flush=True)
        print()
        display.note(f"stopped: {session.dialog.reason or STOPPED}; {time.monotonic() - started:.1f} s")


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
    repetition_penalty: options.RepetitionPenalty = None,
    stop: options.Stop = None,
    json_schema: options.Schema = None,
    seed: options.Seed = 0,
) -> None:
    """Talk with a bundle, on this machine."""
    from llmconv.cli import terminal

    asked = terminal.one_message(prompt)  # before torch is imported
    choice = _asked(temperature, top_k, top_p, repetition_penalty, json_schema)
    with _opened(bundle, adapter, runtime, choice, seed) as session:
        from llmconv.chat.chat import Chat

        ids, templated = session.prompt()
        if not templated:
            display.note("no chat template in recipe or checkpoint: the model goes on with the text")
        stops = _stops(session, stop)
        talk = Chat(session.dialog, ids, system=terminal.clean(system), limit=tokens, trims=templated, stops=stops)
        if asked is None:
            terminal.converse(talk)
        else:
            terminal.answer(talk, asked)


def _asked(
    temperature: float | None, top_k: int | None, top_p: float | None, penalty: float | None, schema: Path | None
) -> dict[str, Any]:
    """What the command line says of choosing tokens, by the fields of `Sampling`."""
    text = None if schema is None else _schema(schema)
    found = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": penalty,
        "schema": text,
    }
    return {name: value for name, value in found.items() if value is not None}


def _schema(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
        schema = json.loads(text)
    except (OSError, ValueError) as error:
        raise LlmconvError(f"--json-schema {file}: cannot be read as JSON ({error})") from error
    if not isinstance(schema, dict):
        raise LlmconvError(f'--json-schema {file}: a JSON schema is an object, such as {{"type": "object"}}')
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "the schema"
        raise LlmconvError(f"--json-schema {file}: {where}: {error.message}") from error
    return text


def _stops(session: Session, asked: list[str] | None) -> list[str]:
    """The recipe's, and the command line's."""
    if "" in (asked or []):
        raise LlmconvError("--stop '': every text begins with it; give one of at least a character")
    return [*session.stops, *(asked or ())]


@contextmanager
def _opened(folder: Path, adapter: str | None, runtime: str, asked: dict[str, Any], seed: int) -> Iterator[Session]:
    from llmconv.bundle.bundle import Bundle
    from llmconv.plugins.registry import Registry

    stack = ExitStack()
    opened = Bundle(folder, adapter)  # before torch is imported
    with display.progress("importing torch") as step:
        from llmconv.chat.session import open_session

        sampling = replace(opened.config.sampling, seed=seed, **asked)
        registry = Registry.load()
        step("load", runtime)
        opening = open_session(opened, runtime, sampling, registry)
        session = stack.enter_context(opening)
    with stack:
        yield session
