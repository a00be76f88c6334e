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
from llmconv.decoding import Dialog, common
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
    Ctrl-C while it reads, it has forgotten everything. Of an answer that a grammar ended it remembers less than it
    wrote, and is given everything again, too.

    Args:
        config: of genie_config.json, for this machine.
        readable: up to which position it reads prompts; it writes up to the context.
        takes_past: whether the graph that reads prompts does.
        rewindable: how much it may have read for it to be rewound; where graphs of longer contexts have run, Genie does
            not come back to the shorter ones ("KV$ exceeded budget").
        crowded: where it forgets the oldest, how much it may have read for the graph that reads prompts to read on;
            behind that, Genie would forget others than the oldest, and is given everything again.
        adapter: of the configuration's, the one to switch on.

    Raises:
        BackendError: Genie is not installed, or refuses the configuration, a binary or the adapter.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        readable: int,
        takes_past: bool,
        adapter: str | None = None,
        *,
        rewindable: int | None = None,
        crowded: int | None = None,
    ) -> None:
        context = config["dialog"]["context"]
        self._config, self._readable, self._adapter = config, readable, adapter
        self._rewindable, self._crowded = rewindable, crowded
        self._goes_on = takes_past and "grammar" not in context
        self._context = int(context["size"])
        self._ends: list[int] = context["eos-token"] if isinstance(context["eos-token"], list) else []
        self._history: list[int] = []
        self._rewound = False  # Genie remembers more than the history, which it is to be told
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
        return min(len(self._history) + bool(self._history and not self._rewound), self._context)

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
        if self._history and not self._ends and not self._rewound:
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
        self._history, self._rewound = [], False

    def rewind(self, text: Sequence[int]) -> int:
        """Remember how `text` begins; Genie finds out by itself how much of it that is, when it is given all of it.

        Not the last id that it wrote: Genie, which has not read that one yet, would go on without it.
        """
        self._finish()
        kept = common(self._history, text[:-1]) if self._child is not None and self._goes_on else 0
        if kept in (0, len(self._history)) or self._is_beyond(self._rewindable) or self._is_beyond(self._crowded):
            self.reset()
            return 0
        self._history, self._rewound = self._history[:kept], True
        return kept

    def _is_beyond(self, position: int | None) -> bool:
        return position is not None and len(self._history) - 1 > position  # the last id is not read

    def close(self) -> None:
        """End the child process."""
        self._stack.close()
        self._child = None

    def _write(self, tokens: list[int], limit: int, turn: int) -> Iterator[int]:
        if self._child is None:
            self._start()
        self.reason, written = "", 0
        rewound, self._rewound = self._rewound, False
        anew = not self._goes_on or self._is_beyond(self._crowded)
        if self._history and not rewound:
            self._history += self._ends[:1]
        self._history += tokens
        if anew:
            self._forget()
        self._tell({"read": self._history if rewound or anew else tokens, "limit": limit, "rewind": rewound})
        self._writing = True
        try:
            while "tokens" in (answer := self._hear()):
                ids = [token for token in answer["tokens"] if token not in self._ends]  # a grammar's end is given
                self._history += ids
                written += len(ids)
                yield from ids
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
        self._writing, self._history, self._rewound = False, [], False
