"""A dialog with Genie in a child process: ids in and ids out, in Genie's own memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmconv import BackendError, ContextFullError
from llmconv.decoding import Dialog
from llmconv_plugins.genie.genie_child import CONFIG
from llmconv_plugins.genie.library import library
from llmconv_plugins.qnn.child import Child, one_line
from llmconv_plugins.qnn.message import receive, send

FULL = 4  # GENIE_STATUS_WARNING_CONTEXT_EXCEEDED
LINES = 2  # of Genie's log in one message: the first names the cause, the next often where

_DECORATION = re.compile(r"^\s*(Genie:\s+[\d.]+ms\s+)?\[\s*(\w+)\s*\]\s*(<\w>\s*)?")
_EMPTY_WORDS = re.compile(r"LIBNATIVE|^\s*\[\s*(INFO|WARN|DEBUG|VERBOSE)\s*\]")


class GenieDialog(Dialog):
    """A dialog.

    Genie reads the last id that it wrote at the beginning of the next turn, and behind it the id that ends the text,
    whether or not it wrote that one; `length` counts both. With a prompt graph that takes no past, Genie would read a
    next turn without what was before it; it is then given everything again. Where its process ends, by a failure or by
    Ctrl-C while it reads, it has forgotten everything.

    Args:
        config: of genie_config.json, for this machine.
        readable: up to which position it reads prompts; it writes up to the context.
        takes_past: whether the graph that reads prompts does.
        adapter: of the configuration's, the one to switch on.

    Raises:
        BackendError: Genie is not installed, or refuses the configuration, a binary or the adapter.
    """

    def __init__(self, config: Mapping[str, Any], readable: int, takes_past: bool, adapter: str | None = None) -> None:
        self._config, self._readable, self._takes_past, self._adapter = config, readable, takes_past, adapter
        self._context = int(config["dialog"]["context"]["size"])
        eos = config["dialog"]["context"]["eos-token"]
        self._end_of_text: int | None = eos[0] if isinstance(eos, list) else None
        self._history: list[int] = []
        self._turn = 0
        self._writing = False
        self._stack = contextlib.ExitStack()
        self._child: Child | None = None
        self._start()

    @property
    def context(self) -> int:
        """Of the widest graph."""
        return self._context

    @property
    def length(self) -> int:
        """What is read, the last id written, and the id that ends the text behind it."""
        return min(len(self._history) + bool(self._history), self._context)

    def query(self, tokens: Sequence[int], limit: int) -> Iterator[int]:
        """Read ids, then write; an iterator that is closed early ends Genie's answer, and the dialog goes on.

        Raises:
            ContextFullError: the ids do not fit.
            BackendError: while iterating: Genie fails or its process ends.
            ValueError: `limit` is below 1, or there are no ids.
        """
        if limit < 1 or not tokens:
            raise ValueError("Genie reads and writes at least one token")
        self._finish()
        self.check_room(tokens)
        if self._history and self._end_of_text is None:
            raise BackendError("Genie puts an id that ends the text between two turns, and the dialog was given none")
        self._turn += 1
        return self._write(list(tokens), limit, self._turn)

    def check_room(self, tokens: Sequence[int]) -> None:
        """Whether ids fit where Genie can read them; its prompt graph needs room for a whole run."""
        room = max(0, self._readable - self.length)
        if len(tokens) > room:
            raise ContextFullError(
                f"the prompt has {len(tokens)} tokens, and Genie has room for {room} "
                f"(it reads up to position {self._readable} of {self._context})"
            )

    def reset(self) -> None:
        """Forget everything."""
        self._finish()
        if self._child is None:
            self._start()
        else:
            self._forget()
        self._history = []

    def close(self) -> None:
        """End the child process."""
        self._stack.close()
        self._child = None

    def _write(self, tokens: list[int], limit: int, turn: int) -> Iterator[int]:
        if self._child is None:
            self._start()
        self.reason, written = "", 0
        if self._history and self._end_of_text is not None:
            self._history.append(self._end_of_text)
        self._history += tokens
        if not self._takes_past:
            self._forget()
        self._tell({"read": tokens if self._takes_past else self._history, "limit": limit})
        self._writing = True
        try:
            while "tokens" in (answer := self._hear()):
                self._history += answer["tokens"]
                written += len(answer["tokens"])
                yield from answer["tokens"]
                if turn != self._turn or not self._writing:
                    return
                self._tell({"go": True})
        except GeneratorExit:
            if turn == self._turn:
                self._finish()
            raise
        self._writing = False
        self._end(answer)
        if answer["status"] == FULL:
            self.reason = f"Genie: the context is full (status {FULL})"
        else:
            self.reason = "end of text" if written < limit else f"{limit} tokens"

    def _finish(self) -> None:
        """End an answer that nobody reads on."""
        if not self._writing:
            return
        self._writing = False
        self._tell({"go": False})
        while "tokens" in self._hear():
            self._tell({"go": False})

    def _forget(self) -> None:
        self._tell({"reset": True})
        self._end(self._hear())

    def _start(self) -> None:
        libraries = library().parent
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="llmconv-")))
        (folder / CONFIG).write_text(json.dumps(self._config), encoding="utf-8")
        self._history = []
        self._child = self._stack.enter_context(
            Child("llmconv_plugins.genie.genie_child", [], log=folder / "log.txt", cwd=folder, libraries=libraries)
        )
        self._end(self._hear())
        if self._adapter is not None:
            self._tell({"adapter": self._adapter})
            self._end(self._hear())

    def _tell(self, request: Mapping[str, Any]) -> None:
        child = self._running()
        try:
            send(child.stdin, request, {})
        except (OSError, ValueError) as error:
            raise self._died(child) from error

    def _hear(self) -> dict[str, Any]:
        child = self._running()
        try:
            return receive(child.stdout)[0]
        except (EOFError, OSError, ValueError) as error:
            raise self._died(child) from error
        except BaseException:  # Ctrl-C while Genie reads: it cannot be stopped there, so the next query starts anew
            self._give_up()
            raise

    def _running(self) -> Child:
        if self._child is None:
            raise BackendError("Genie's process has ended; reset the dialog")
        return self._child

    def _died(self, child: Child) -> BackendError:
        message = f"Genie {child.ending()}"
        self._give_up()
        return BackendError(message)

    def _end(self, answer: Mapping[str, Any]) -> None:
        """Check how a request ended; after a failure Genie's memory holds nobody knows what, so it is given up."""
        log = self._running().log
        text = log.read_text(errors="replace")
        os.truncate(log, 0)
        if answer["status"] < 0:
            self._give_up()
            lines = [line for line in text.splitlines() if line.strip() and not _EMPTY_WORDS.search(line)]
            said = "; ".join(_DECORATION.sub("", line).strip().strip('"') for line in lines[:LINES])
            raise BackendError(f"Genie: {one_line(said) or 'no message'} (status {answer['status']})")

    def _give_up(self) -> None:
        """End the process; the next query or reset starts another, which remembers nothing."""
        self.close()
        self._writing, self._history = False, []
