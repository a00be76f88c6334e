"""Text to token ids and back, from a SentencePiece or a Hugging Face tokenizer file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmconv.errors import CheckpointError

FILES = ("tokenizer.model", "tokenizer.json")


class Tokenizer:
    """A checkpoint's tokenizer.

    Args:
        file: `tokenizer.model` (SentencePiece) or `tokenizer.json` (Hugging Face).

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            if file.suffix == ".model":
                from sentencepiece import SentencePieceProcessor  # noqa: PLC0415  costs 0.1 s that --help should not pay

                self._sp = SentencePieceProcessor(model_file=str(file))
            else:
                from tokenizers import Tokenizer as Fast  # noqa: PLC0415  likewise

                self._sp, self._fast = None, Fast.from_file(str(file))
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
        if self._sp is not None:
            return list(self._sp.encode(text))
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        if self._sp is not None:
            return str(self._sp.decode(list(ids)))
        return str(self._fast.decode(list(ids), skip_special_tokens=True))
