"""Text to token ids and back, from a SentencePiece or a Hugging Face tokenizer file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import tokenizers
from sentencepiece import SentencePieceProcessor

from llmconv.checkpoint.sentencepiece_to_tokenizers import convert
from llmconv.errors import CheckpointError

FILES = ("tokenizer.model", "tokenizer.json")


class Tokenizer:
    """A checkpoint's tokenizer.

    Args:
        file: `tokenizer.model` (SentencePiece) or `tokenizer.json` (Hugging Face).

    Attributes:
        size: how many ids it knows.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._encode: Callable[[str], Sequence[int]]
        self._decode: Callable[[list[int]], str]
        try:
            if file.suffix == ".model":
                pieces = SentencePieceProcessor(model_file=str(file))
                self._encode, self._decode = pieces.encode, pieces.decode
                self.size = int(pieces.get_piece_size())
            else:
                fast = tokenizers.Tokenizer.from_file(str(file))
                self._encode = lambda text: fast.encode(text, add_special_tokens=False).ids
                self._decode = lambda ids: fast.decode(ids, skip_special_tokens=True)
                self.size = int(fast.get_vocab_size(with_added_tokens=True))
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
        """Token ids of a text, without BOS or EOS."""
        return list(self._encode(text))

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
