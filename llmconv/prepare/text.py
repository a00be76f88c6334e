"""Text as windows of ids."""

from __future__ import annotations

from pathlib import Path

from llmconv.errors import RecipeError
from llmconv.prepare.resolve import Checked
from llmconv.tokenizer.tokenizer import Tokenizer

BREAK = "\n\f\n"  # between documents in a text file


WINDOWS = 32  # of held-out text


def read_windows(text: Path, tokenizer: Tokenizer, bos: int, tokens: int, limit: int | None = None) -> list[list[int]]:
    """A text's documents as windows of `tokens` ids, each starting with BOS.

    Raises:
        RecipeError: the text is not UTF-8, or too short for one window.
    """
    try:
        documents = text.read_text(encoding="utf-8").split(BREAK)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{text}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    stream = [t for document in documents for t in tokenizer.encode(document)]
    body = tokens - 1
    windows = [[bos, *stream[i : i + body]] for i in range(0, len(stream) - body + 1, body)]
    if not windows:
        raise RecipeError(f"{text}: holds {len(stream)} tokens, fewer than one window of {tokens}; give a longer text")
    if limit is None or limit >= len(windows):
        return windows
    step = len(windows) / limit  # spread over the whole text
    return [windows[int(i * step)] for i in range(limit)]


def calibration_samples(checked: Checked) -> list[list[int]]:
    """Windows of the recipe's calibration text; none where no pass asks for them. Raises as `read_windows`."""
    found = checked.calibration
    if found is None:
        return []
    return read_windows(found.text, checked.source.tokenizer(), checked.config.bos, found.tokens, found.samples)


def held_out(checked: Checked) -> list[list[int]]:
    """Windows of the recipe's held-out text, of the shortest context; none without a text. Raises as `read_windows`."""
    context, text = min(g.context for g in checked.recipe.graphs.values()), checked.recipe.verify.text
    if text is None:
        return []
    return read_windows(text, checked.source.tokenizer(), checked.config.bos, context, WINDOWS)
