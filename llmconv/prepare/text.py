"""Text as windows of ids."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmconv.chat.prompt import Prompt
from llmconv.chat.template import Message
from llmconv.decoding.decoder import whole_runs, widest
from llmconv.errors import ChatError, RecipeError
from llmconv.prepare.resolve import Checked

BREAK = "\n\f\n"  # between documents in a text file
WINDOW, HELD_OUT = 256, 4096  # tokens of a window of held-out text at most, and of all of them
USER, ASSISTANT = "user", "assistant"
SPEAKERS = ("User: ", "Assistant: ")  # at the beginning of a turn, in a document that is a conversation
LETTERS = 6  # a token, more than texts in any language that is written in letters have
logger = logging.getLogger(__name__)


def read_documents(text: Path) -> list[str]:
    """A file's documents, without a byte-order mark.

    Raises:
        RecipeError: the text is not UTF-8.
    """
    try:
        return text.read_text(encoding="utf-8-sig").split(BREAK)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{text}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def windows(stream: list[int], begin: tuple[int, ...], tokens: int, text: Path) -> list[list[int]]:
    """Ids cut into windows of `tokens`, each starting as the tokenizer starts texts.

    Raises:
        RecipeError: there are too few for one.
    """
    body = tokens - len(begin)
    if body < 1:
        raise RecipeError(f"windows of {tokens} tokens have no room behind what begins a text; ask for longer ones")
    found = [[*begin, *stream[i : i + body]] for i in range(0, len(stream) - body + 1, body)]
    if not found:
        raise RecipeError(f"{text}: holds {len(stream)} tokens, fewer than one window of {tokens}; give a longer text")
    return found


def spread(found: list[list[int]], limit: int) -> list[list[int]]:
    """So many of the windows, spread over the whole text."""
    step = max(1.0, len(found) / limit)
    return [found[int(i * step)] for i in range(min(limit, len(found)))]


def calibration_samples(checked: Checked) -> list[list[int]]:
    """Windows of the recipe's calibration text, half of them as conversations where there is a chat template.

    None where no pass asks for them.

    Raises:
        RecipeError: the text is not UTF-8, or too short for one window.
    """
    asked = checked.calibration
    if asked is None:
        return []
    tokenizer, documents = checked.tokenizer, read_documents(asked.text)
    encode = tokenizer.encode_marked if asked.control_tokens else tokenizer.encode
    talks = _conversations(checked, documents, asked.tokens) if asked.chat else []
    written = [d for d in documents if not _said(d)] if talks else documents
    plain = [i for document in written or documents for i in encode(document)]
    found = windows(plain, tokenizer.begin, asked.tokens, asked.text)
    half = min(len(talks), asked.samples // 2)
    chosen = [*spread(found, asked.samples - half), *spread(talks, half)] if half else spread(found, asked.samples)
    if len(chosen) < asked.samples:
        logger.warning(
            "%s: holds %d windows of %d tokens, fewer than calibration.samples = %d; all are used",
            *(asked.text, len(chosen), asked.tokens, asked.samples),
        )
    return chosen


def _conversations(checked: Checked, documents: list[str], tokens: int) -> list[list[int]]:
    """Conversations in the model's own chat template, a window each at most."""
    try:
        template = checked.template
    except ChatError as error:
        logger.warning("calibration: no sample is a conversation, since %s", error)
        return []
    if template is None:
        return []
    prompt, found = Prompt(template, checked.tokenizer), []
    for messages in _messages(documents, LETTERS * tokens):
        try:
            ids = prompt.ids(messages)
        except ChatError as error:
            logger.warning("calibration: no sample is a conversation, since %s", error)
            return []
        if len(ids) >= tokens:
            found.append(ids[:tokens])
    return found


def _messages(documents: list[str], length: int) -> Iterator[list[Message]]:
    """Conversations of so many characters: what is said in the documents, else paragraphs that are said in turn."""
    said = [message for document in documents for message in _said(document)]
    paragraphs = (p.strip() for document in documents for p in document.split("\n\n"))
    messages: list[Message] = []
    for message in said or _in_turn(p for p in paragraphs if p):
        messages.append(message)
        if sum(len(m["content"]) for m in messages) >= length and message["role"] == ASSISTANT:
            yield messages
            messages = []


def _said(document: str) -> list[Message]:
    """The turns of a document that begins with `User: `, in which each turn begins with who speaks."""
    if not document.lstrip().startswith(SPEAKERS[0]):
        return []
    turns = re.split(rf"^({'|'.join(SPEAKERS)})", document.strip(), flags=re.MULTILINE)[1:]
    return [
        {"role": who.rstrip(": ").lower(), "content": what.strip()}
        for who, what in zip(turns[::2], turns[1::2], strict=True)
    ]


def _in_turn(paragraphs: Iterable[str]) -> Iterator[Message]:
    for i, paragraph in enumerate(paragraphs):
        yield {"role": (USER, ASSISTANT)[i % 2], "content": paragraph}


def held_out(checked: Checked) -> list[list[int]]:
    """Windows of the recipe's held-out text, as long as the graph that reads most at once allows; none without a text.

    Raises:
        RecipeError: as of `calibration_samples`.
    """
    text = checked.recipe.verify.text
    if text is None:
        return []
    tokens = min(WINDOW, whole_runs(widest(checked.recipe.graphs.values())))
    stream = [i for document in read_documents(text) for i in checked.tokenizer.encode_marked(document)]
    return spread(windows(stream, checked.tokenizer.begin, tokens, text), max(1, HELD_OUT // tokens))
