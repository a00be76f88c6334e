"""A conversation in a terminal: lines in, answers out as they come, Ctrl-C stops an answer."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from llmconv.cli import display
from llmconv.errors import ChatError, LlmconvError

if TYPE_CHECKING:
    from llmconv.chat.chat import Answer, Chat

YOU = "> "
SPEED = "speeds are this machine's; they say nothing about the phone's"
_UNPRINTABLE = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}  # they command a terminal


def one_message(prompt: str | None) -> str | None:
    """What is to be answered alone: the option, or what comes through a pipe; None where a person types.

    Raises:
        LlmconvError: there is nothing to answer.
    """
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    where = "stdin" if prompt is None else "--prompt"
    if prompt is None and sys.stdin is not None:  # None where it is closed
        if sys.stdin.isatty():
            return None
        prompt = sys.stdin.read()
    if not (text := clean(prompt or "").strip()):
        raise LlmconvError(f"{where}: holds no text; there is nothing to answer")
    return text


def clean(text: str) -> str:
    """A text from the command line, where bytes that are not UTF-8 come as halves of characters."""
    return text.encode("utf-8", "replace").decode("utf-8")


def answer(chat: Chat, text: str) -> None:
    """Answer one message: the answer alone goes to stdout."""
    said = chat.say(text)
    for piece in said.pieces:
        _show(piece)
    print()
    _close(said, said.reason)
    display.note(SPEED)


def converse(chat: Chat) -> None:
    """Read lines and answer them until Ctrl-D, or Ctrl-C at the prompt."""
    from llmconv.errors import ContextFullError

    if os.environ.get("TERM") != "dumb":
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then edits lines
    display.note(f"{chat.dialog.context} tokens of context; Ctrl-C stops an answer, twice the chat; Ctrl-D ends it")
    told = False
    while (line := _line()) is not None:
        if not line.strip():
            continue
        try:
            _turn(chat, clean(line))
        except (ContextFullError, ChatError) as error:
            display.note(f"not answered: {error}")
            continue
        if not told:
            display.note(SPEED)
        told = True


def _line() -> str | None:
    """What was typed; None at the end of the chat."""
    try:
        return input(YOU)
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        readline = sys.modules.get("readline")
        return "" if readline is not None and readline.get_line_buffer() else None  # what was typed is given up


def _turn(chat: Chat, text: str) -> None:
    with _interruptible() as interrupted:
        said = chat.say(text)
        if said.dropped:
            room = f"the context holds {chat.dialog.context} tokens"
            display.note(f"forgotten to make room: the oldest {said.dropped} turn(s); {room}")
        with contextlib.closing(said.pieces) as pieces:
            for piece in pieces:
                _show(piece)
                if interrupted():
                    break
        reason = "stopped" if interrupted() else said.reason
    print()
    _close(said, reason)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C, so that a runtime is not left in the middle of a token; the second acts as always."""
    pressed = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _show(piece: str) -> None:
    print(piece.translate(_UNPRINTABLE) if sys.stdout.isatty() else piece, end="", flush=True)


def _close(said: Answer, reason: str) -> None:
    if not said.tokens:
        display.note(f"no answer: {reason}")
        return
    rate = f"{said.rate:.1f} tokens/s, " if said.rate else ""
    display.note(f"{said.tokens} tokens, {rate}the first after {said.first:.2f} s; {reason}")
