"""A chat template: Jinja over messages, in a sandbox, since it comes with a checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmconv.errors import ChatError

Message = Mapping[str, str]  # "role": system, user or assistant; "content"
STEPS = 300_000  # lines of Python that a rendering may run; 500 messages need a tenth of it


class ChatTemplate:
    """A template as Hugging Face writes them: `messages`, `add_generation_prompt`, `bos_token` and `eos_token`.

    Args:
        text: Jinja, with what transformers adds to it: loop controls, `generation`, `raise_exception`,
            `strftime_now`, `tojson`.
        where: what it came from, for messages.
        tokens: strings of control tokens by the names that templates know, `bos_token` among them.

    Raises:
        ChatError: the text is no Jinja.
    """

    def __init__(self, text: str, where: str, tokens: Mapping[str, str]) -> None:
        self.where, self.tokens = where, dict(tokens)
        try:
            self._template = _environment().from_string(text)
        except TemplateSyntaxError as error:
            raise ChatError(f"{where}, line {error.lineno}: {error.message}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The text that makes the model answer the last message.

        Raises:
            ChatError: the template refuses the messages, or tries what the sandbox forbids.
        """
        values: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True, **self.tokens}
        try:
            with _bounded():
                return self._template.render(messages=[dict(m) for m in messages], **values)
        except TemplateError as error:
            raise ChatError(f"{self.where}: {_one_line(error)}") from error
        except Exception as error:  # a template can raise whatever an expression can
            raise ChatError(f"{self.where}: {type(error).__name__}: {_one_line(error)}") from error


class _Generation(Extension):
    """`{% generation %}`, with which transformers marks what a model is trained on: here its body."""

    tags = {"generation"}  # noqa: RUF012  declared so by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return made


def _to_json(value: Any, indent: int | None = None, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # Jinja's own escapes what HTML would need


def _refuse(message: str) -> None:
    raise TemplateError(message)


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop what runs inside after so many lines of Python; the sandbox alone lets loops run for days."""
    steps = 0

    def count(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > STEPS:
            raise TemplateError("does not come to an end")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
