"""A chat template: Jinja over messages, rendered in a child process, since it comes with a checkpoint."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateSyntaxError

from llmconv.chat import render_child
from llmconv.errors import ChatError

Message = Mapping[str, str]  # "role": system, user or assistant; "content"
PATIENCE = 30  # seconds of the clock for a rendering, its process's start included


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
        self.text, self.where, self.tokens = text, where, dict(tokens)
        try:
            render_child.environment().parse(text)  # computes nothing
        except TemplateSyntaxError as error:
            raise ChatError(f"{where}, line {error.lineno}: {error.message}") from error
        except (ValueError, RecursionError) as error:  # numbers of too many digits, too many brackets
            raise ChatError(f"{where}: {render_child.explain(error)}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The text that makes the model answer the last message.

        Raises:
            ChatError: the template refuses the messages, tries what the sandbox forbids, or takes too much.
        """
        values: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True, **self.tokens}
        answer = _RENDERER.render(self.text, {**values, "messages": [dict(m) for m in messages]})
        if "error" in answer:
            raise ChatError(f"{self.where}: {answer['error']}")
        return answer["text"]


class _Renderer:
    """A running `render_child.py`, started at the first rendering and after one that ended it; it ends with us."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # a fork of this process has a copy of the pipes, and needs a child of its own
        atexit.register(self.close)

    def render(self, template: str, values: Mapping[str, Any]) -> dict[str, str]:
        """The child's answer, or an error that says how the child ended."""
        request = json.dumps({"template": template, "values": values}) + "\n"
        with self._one_at_a_time:
            try:
                process = self._started()
            except OSError as error:
                return {"error": f"no process to render it in ({error})"}
            began, patience = time.monotonic(), threading.Timer(PATIENCE, process.kill)
            patience.start()
            try:
                if line := _exchange(process, request):
                    return dict(json.loads(line))
                status = process.wait()
            except BaseException:  # an answer that comes later would be taken for the next one
                self.close()
                raise
            finally:
                patience.cancel()
        if status == -getattr(signal, "SIGPROF", 0) or time.monotonic() - began >= PATIENCE:
            return {"error": "does not come to an end"}
        return {"error": f"the process that renders it ended with status {status}"}

    def close(self) -> None:
        """End the child; the next rendering starts another."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what could not be written
                if pipe is not None:
                    pipe.close()
        process.wait()

    def _started(self) -> subprocess.Popen[str]:
        process = self._process
        if process is None or self._owner != os.getpid() or process.poll() is not None:
            self.close()
            process = self._process = subprocess.Popen(
                [sys.executable, "-P", render_child.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                start_new_session=True,  # Ctrl-C stops an answer, not this
            )
            self._owner = os.getpid()
        return process


def _exchange(process: subprocess.Popen[str], request: str) -> str:
    """The answer; empty where the process has ended."""
    if process.stdin is None or process.stdout is None:
        return ""
    with contextlib.suppress(BrokenPipeError):  # stdout says so, too
        process.stdin.write(request)
        process.stdin.flush()
    return process.stdout.readline()


_RENDERER = _Renderer()  # one child for all templates of the process: starting one takes a fifth of a second
