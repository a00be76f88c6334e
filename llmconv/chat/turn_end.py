"""The token that ends a turn, as a chat template writes it."""

from __future__ import annotations

import re

from llmconv.chat.template import ChatTemplate
from llmconv.errors import ChatError
from llmconv.tokenizer.tokenizer import Tokenizer

_QUESTION, _ANSWER = "qQuUeEsS", "aAnNsSwW"  # texts that no template writes by itself


def turn_end(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """The control token right behind an answer in a conversation that goes on; None where there is none.

    A model that was trained on the template writes it where its answer ends, whatever else the checkpoint's files name.
    """
    asked = {"role": "user", "content": _QUESTION}
    try:
        text = template.render([asked, {"role": "assistant", "content": _ANSWER}, asked])
    except ChatError:  # which whoever chats is told
        return None
    before, found, behind = text.partition(_ANSWER)
    names = "|".join(map(re.escape, sorted(tokenizer.control, key=len, reverse=True)))
    if not found or not names or not (end := re.match(rf"\s*({names})", behind)):
        return None
    openings = [re.findall(names, text)[-1:] for text in (before.partition(_QUESTION)[0], before)]
    return None if [end[1]] in openings else tokenizer.control[end[1]]  # what begins a turn is of the next one
