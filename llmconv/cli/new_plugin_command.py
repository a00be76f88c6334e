"""The command that begins a plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmconv.cli import display
from llmconv.errors import LlmconvError

_DEFAULT = "pass"


def new(
    name: Annotated[str, typer.Argument(help="Words with - between them: the folder, and the name in recipes with _.")],
    pass_: Annotated[bool, typer.Option("--pass", help="One that rewrites an op; the default.")] = False,
    source: Annotated[bool, typer.Option("--source", help="What reads checkpoints.")] = False,
    family: Annotated[bool, typer.Option("--family", help="A model type, as a table against Llama.")] = False,
    quantizer: Annotated[bool, typer.Option("--quantizer", help="What puts weights on their grid.")] = False,
    backend: Annotated[bool, typer.Option("--backend", help="What builds from the parts.")] = False,
    lowering: Annotated[bool, typer.Option("--lowering", help="ONNX of an op, and a pass that makes it.")] = False,
    evaluator: Annotated[bool, typer.Option("--evaluator", help="What 'llmconv eval' measures.")] = False,
    onnx_pass: Annotated[bool, typer.Option("--onnx-pass", help="One over the ONNX of lowered parts.")] = False,
    scheme: Annotated[bool, typer.Option("--scheme", help="Which weights get how many bits, under a name.")] = False,
    observer: Annotated[bool, typer.Option("--observer", help="What is told of each pass and step.")] = False,
    recipes: Annotated[bool, typer.Option("--recipes", help="Recipes that commands find by name.")] = False,
) -> None:
    """Begin a plugin: a folder with a working one, its test, pyproject.toml, README and CI; then edit it."""
    from llmconv.scaffold.new_plugin import EXAMPLES, new_plugin

    flags = (pass_, source, family, quantizer, backend, lowering, evaluator, onnx_pass, scheme, observer, recipes)
    kinds = [kind for kind, given in zip(EXAMPLES, flags, strict=True) if given]
    if len(kinds) > 1:
        raise LlmconvError(f"--{kinds[0]} and --{kinds[1]}: a plugin begins with one kind; add hooks to its module")
    for file in new_plugin(kinds[0] if kinds else _DEFAULT, name, Path()):
        print(file)
    display.note(f"next: cd {name}, pip install --editable . pytest, pytest")
