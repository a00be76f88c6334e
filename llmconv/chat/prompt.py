"""From messages to ids: the template's control tokens are tokens, what people and models wrote is text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmconv.chat.template import ChatTemplate, Message
from llmconv.errors import ChatError
from llmconv.tokenizer.tokenizer import Tokenizer

_FIRST_STAND_IN = 0x100000  # private use: no one's letter


class Prompt:
    """Renders messages and encodes them.

    A string such as `</s>` in a message must not become the token. A private-use character stands in for one of its
    characters while the text is rendered, and until the template's own tokens are found.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self.template, self.tokenizer = template, tokenizer
        names = sorted(tokenizer.control)
        ends = sorted({c for name in names for c in (name[0], name[-1])})
        self._stands = {c: chr(_FIRST_STAND_IN + i) for i, c in enumerate(ends)}
        self._stand_ins = {stand: c for c, stand in self._stands.items()}
        self._name = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self._tails = {name[i:] for name in names for i in range(1, len(name))}
        self._heads = {name[:i] for name in names for i in range(1, len(name))}

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the whole conversation, up to where the model's answer begins.

        Raises:
            ChatError: as of `ChatTemplate.render`; or there is nothing to read.
        """
        shielded = [{**m, "content": self._shield(m["content"])} for m in messages]
        ids = self.tokenizer.encode_marked(self.template.render(shielded), self._stand_ins)
        if not ids:
            raise ChatError(f"{self.template.where}: renders the conversation as no token at all")
        return ids

    def _shield(self, text: str) -> str:
        """The text without a control token's string, and without the half of one that the template could complete."""
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        places = {start + len(tail) - 1 for tail in self._tails if text.startswith(tail, start)}
        places |= {end - len(head) for head in self._heads if text.endswith(head, 0, end)}
        found = self._name.search(text)
        while found:
            places.add(found.start())
            found = self._name.search(text, found.start() + 1)  # tokens may overlap
        shielded = list(text)
        for place in places:
            shielded[place] = self._stands[text[place]]
        return "".join(shielded)
