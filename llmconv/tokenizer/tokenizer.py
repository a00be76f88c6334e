"""Text to token ids and back, from a SentencePiece or a Hugging Face tokenizer file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType

import tokenizers
from sentencepiece import SentencePieceProcessor

from llmconv.errors import CheckpointError
from llmconv.tokenizer.sentencepiece_to_tokenizers import convert

FILES = ("tokenizer.model", "tokenizer.json")


class Tokenizer:
    """A checkpoint's tokenizer.

    Args:
        file: `tokenizer.model` (SentencePiece) or `tokenizer.json` (Hugging Face).

    Attributes:
        size: how many ids it knows.
        control: the strings that name control tokens, such as `</s>`, and their ids.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.control: dict[str, int]
        self._marked: Callable[[], tokenizers.Tokenizer] | None = None
        self._encode: Callable[[str], Sequence[int]]
        self._decode: Callable[[list[int]], str]
        try:
            if file.suffix == ".model":
                pieces = SentencePieceProcessor(model_file=str(file))
                self._encode, self._decode = pieces.encode, pieces.decode
                self.size = int(pieces.get_piece_size())
                self.control = {pieces.id_to_piece(i): i for i in range(self.size) if pieces.is_control(i)}
            else:
                fast = tokenizers.Tokenizer.from_file(str(file))
                fast.encode_special_tokens = True  # their strings in a text are text; threads share it, so it stays so
                self._marked = cache(lambda: tokenizers.Tokenizer.from_str(fast.to_str()))  # here they are tokens
                self._encode = lambda text: fast.encode(text, add_special_tokens=False).ids
                self._decode = lambda ids: fast.decode(ids, skip_special_tokens=True)
                self.size = int(fast.get_vocab_size(with_added_tokens=True))
                self.control = {t.content: i for i, t in fast.get_added_tokens_decoder().items() if t.special}
        except Exception as error:  # both libraries raise bare RuntimeError, OSError and Exception
            raise CheckpointError(f"{file}: not a tokenizer that can be read ({error})") from error

    @classmethod
    def find(cls, folder: Path) -> Tokenizer:
        """The tokenizer in a folder.

        Raises:
            CheckpointError: the folder holds none.
        """
        for name in FILES:
            if (folder / name).is_file():
                return cls(folder / name)
        raise CheckpointError(f"{folder}: no {' or '.join(FILES)}; copy the model's tokenizer there")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS or EOS; never a control token, whatever the text holds."""
        return list(self._encode(text))

    def encode_marked(self, text: str, stand_ins: Mapping[str, str] = MappingProxyType({})) -> list[int]:
        """Token ids of a text in which the string of a control token means the token.

        Args:
            stand_ins: characters of the text -> those that they stand for, which form no control token.
        """
        if self._marked is not None and not any(character in text for character in stand_ins):
            fast = self._marked()  # as the model was trained: what lies before a text counts
            return list(fast.encode(text, add_special_tokens=False).ids)
        table = str.maketrans(dict(stand_ins))
        ids: list[int] = []
        for piece in self._split(text):
            ids += [self.control[piece]] if piece in self.control else self.encode(piece.translate(table))
        return ids

    def _split(self, text: str) -> list[str]:
        """The text cut before and behind every control token, the longest first where several match."""
        names = sorted(self.control, key=len, reverse=True)
        found = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        return [piece for piece in found if piece]

    def token(self, token: int) -> str:
        """The string of a control token; empty for any other id."""
        return next((name for name, i in self.control.items() if i == token), "")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self._decode(list(ids)))

    def to_json(self) -> str:
        """The tokenizer as Hugging Face's tokenizer.json, giving the same ids.

        Raises:
            CheckpointError: a SentencePiece model does something that the other format cannot express.
        """
        if self.file.suffix == ".model":
            return str(convert(self.file).to_str(pretty=False))
        return self.file.read_text(encoding="utf-8")
