"""A conversation over a dialog: its history, what of it the context still holds, and answers as they come."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from llmconv.chat.prompt import Prompt
from llmconv.chat.template import Message
from llmconv.decoding.dialog import Dialog
from llmconv.decoding.generate import STOPPED, stream_text, until
from llmconv.errors import ContextFullError

TAIL = 16  # ids before an answer that decide how its first token is written


@dataclass
class Answer:
    """One answer.

    Attributes:
        pieces: its text, once, in pieces that hold whole characters; close it to stop the answer.
        dropped: turns that are forgotten to make room for it.
        tokens: ids written so far.
        first: seconds until the first of them.
        seconds: until the last of them.
        reason: why it ended; empty until then.
    """

    pieces: Generator[str, None, None] = field(init=False)
    dropped: int
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    reason: str = ""

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first."""
        between = self.seconds - self.first
        return (self.tokens - 1) / between if self.tokens > 1 and between > 0 else None


@dataclass(frozen=True)
class _Read:
    """What a dialog remembers: a rendered conversation, and the answer that it wrote behind it.

    Attributes:
        length: of the dialog; ids of earlier answers may be others than those that their text is encoded as.
    """

    rendered: list[int]
    written: list[int]
    length: int


class Chat:
    """Keeps the turns of a conversation, and what of them the dialog has read.

    Args:
        limit: ids of an answer at most; half of the context by default.
        trims: whether an answer's leading white space is left out, as templates leave it out.
        stops: texts at which an answer ends, without them.
    """

    def __init__(
        self,
        dialog: Dialog,
        prompt: Prompt,
        *,
        system: str = "",
        limit: int | None = None,
        trims: bool = True,
        stops: Sequence[str] = (),
    ) -> None:
        self.dialog, self.prompt, self.trims, self.stops = dialog, prompt, trims, tuple(stops)
        self.limit = limit or max(1, dialog.context // 2)
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[tuple[Message, Message]] = []
        self._read: _Read | None = _Read([], [], 0)  # None when it is unknown

    def say(self, text: str) -> Answer:
        """An answer that is written while it is iterated over; the turn is kept once some of it was.

        The oldest turns are forgotten where they leave an answer no room.

        Raises:
            ContextFullError: the text does not fit even alone; nothing has run, nothing was forgotten.
            ChatError: the template refuses it; likewise.
        """
        reserve = min(self.limit, self.dialog.context // 4)
        asked: Message = {"role": "user", "content": text}
        for dropped in range(len(self.turns) + 1):
            kept = self.turns[dropped:]
            ids = self.prompt.ids([*self.system, *(m for turn in kept for m in turn), asked])
            if len(ids) + reserve <= self.dialog.context:
                break
        if len(ids) > self.dialog.context:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens by itself, and the context holds {self.dialog.context}; say less"
            )
        answer = Answer(dropped)
        answer.pieces = self._answer(ids, asked, kept, answer)
        return answer

    def _answer(
        self, ids: list[int], asked: Message, kept: list[tuple[Message, Message]], answer: Answer
    ) -> Generator[str, None, None]:
        self.turns = kept
        fresh = self._unread(ids)
        self._read = None  # until the dialog has come to rest
        written: list[int] = []
        before = self.dialog.length + len(fresh)
        shown = ""
        try:
            with closing(self._counted(fresh, written, answer)) as tokens:
                for piece in until(stream_text(self.prompt.tokenizer, ids[-TAIL:], tokens), self.stops):
                    if text := piece if shown or not self.trims else piece.lstrip():
                        shown += text
                        yield text
            answer.reason = self.dialog.reason or STOPPED
            self._read = _Read(ids, written, before + len(written))
        except GeneratorExit:  # between two tokens
            self._read = _Read(ids, written, before + len(written))
            raise
        finally:
            if shown:
                self.turns.append((asked, {"role": "assistant", "content": shown}))

    def _unread(self, ids: list[int]) -> list[int]:
        """What the dialog has to read yet; it begins anew where what it has read does not begin the conversation."""
        known = self._read
        if known is not None and known.length == self.dialog.length:
            count = len(known.rendered)
            fresh = self._behind(known.written, ids[count:]) if ids[:count] == known.rendered else []
            if fresh and known.length + len(fresh) <= self.dialog.context:
                return fresh
        return ids[self.dialog.rewind(ids) :]

    def _behind(self, written: list[int], ids: list[int]) -> list[int]:
        """What follows the last answer; nothing where that is another text by now.

        A model may write a text in other tokens than those that the text is encoded as.
        """
        if ids[: len(written)] == written:
            return ids[len(written) :]
        tokenizer = self.prompt.tokenizer
        ends = set(tokenizer.control.values())
        end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        same = tokenizer.decode(ids[:end]).strip() == tokenizer.decode(written).strip()
        return ids[end:] if same else []

    def _counted(self, fresh: Sequence[int], written: list[int], answer: Answer) -> Generator[int, None, None]:
        began = time.monotonic()
        for token in self.dialog.query(fresh, self.limit):
            written.append(token)
            answer.tokens, answer.seconds = len(written), time.monotonic() - began
            answer.first = answer.first if len(written) > 1 else answer.seconds
            yield token
