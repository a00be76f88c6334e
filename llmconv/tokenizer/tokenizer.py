"""Text to token ids and back, from a SentencePiece or a Hugging Face tokenizer file and what lies beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
from sentencepiece import SentencePieceProcessor

from llmconv.errors import CheckpointError
from llmconv.files import check_no_pointer
from llmconv.tokenizer.added_tokens import added_tokens, adds_bos, named_tokens
from llmconv.tokenizer.gguf_to_tokenizers import convert_gguf
from llmconv.tokenizer.sentencepiece_to_tokenizers import convert

FILES = ("tokenizer.json", "tokenizer.model")
_PROBE = "a"  # a text that what a tokenizer puts in front of texts is seen on
_PADDING = re.compile(r"\W*pad(ding)?\W*", re.IGNORECASE)  # often added beyond the embedding, and in no text


class Tokenizer:
    """A checkpoint's tokenizer. Texts are neither truncated nor padded, whatever its file says of batches.

    Args:
        file: `tokenizer.json` (Hugging Face) or `tokenizer.model` (SentencePiece). Tokens that are added by the files
            beside it are added: tokenizer_config.json, added_tokens.json.
        fast: one that was made from another file, which then names it in messages alone.

    Attributes:
        size: how many ids it knows.
        control: the strings that name control tokens, such as `</s>`, and their ids.
        begin: ids that are put in front of a text by the tokenizer's own rules: BOS, or nothing.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, file: Path, fast: tokenizers.Tokenizer | None = None) -> None:
        self.file = file
        self.control: dict[str, int]
        self.begin: tuple[int, ...]
        self._limit: int | None = None
        self._marked: Callable[[], tokenizers.Tokenizer] | None = None
        self._encode: Callable[[str], Sequence[int]]
        self._decode: Callable[[list[int]], str]
        self._added = added_tokens(file.parent) if fast is None else {}
        check_no_pointer(file)
        try:
            if fast is not None:
                self._read_fast(fast)
            elif file.suffix == ".model":
                self._read_pieces(SentencePieceProcessor(model_file=str(file)))
            else:
                self._read_fast(tokenizers.Tokenizer.from_file(str(file)))
        except CheckpointError:
            raise
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

    @classmethod
    def of_gguf(cls, metadata: Mapping[str, Any], file: Path) -> Tokenizer:
        """The tokenizer in the metadata of a GGUF file.

        Raises:
            CheckpointError: they hold none, or one that is not known here.
        """
        return cls(file, convert_gguf(metadata, file))

    def _read_fast(self, fast: tokenizers.Tokenizer) -> None:
        fast.no_truncation()
        fast.no_padding()
        self._add_to(fast)
        fast.encode_special_tokens = True  # their strings in a text are text; threads share it, so it stays so
        self._fast = fast
        self._marked = cache(lambda: tokenizers.Tokenizer.from_str(fast.to_str()))  # here they are tokens
        self._encode = lambda text: fast.encode(text, add_special_tokens=False).ids
        self._decode = lambda ids: fast.decode(ids, skip_special_tokens=True)
        self.size = int(fast.get_vocab_size(with_added_tokens=True))
        self.control = {t.content: i for i, t in fast.get_added_tokens_decoder().items() if t.special}
        plain = fast.encode(_PROBE, add_special_tokens=False).ids
        whole = fast.encode(_PROBE, add_special_tokens=True).ids
        self.begin = tuple(whole[: max(0, len(whole) - len(plain))] if not plain else whole[: whole.index(plain[0])])

    def _read_pieces(self, pieces: SentencePieceProcessor) -> None:
        count = int(pieces.get_piece_size())
        self._texts = {i: ("" if t.special else t.content) for i, t in self._added.items() if i >= count}
        self.size = max([count, *(i + 1 for i in self._texts)])
        self.control = {pieces.id_to_piece(i): i for i in range(count) if pieces.is_control(i)}
        self.control |= {t.content: i for i, t in self._added.items() if i in self._texts and t.special}
        self._words = {t.content: i for i, t in self._added.items() if i in self._texts and not t.special}

        def encode(text: str) -> list[int]:
            found: list[int] = []
            for piece in _split(text, self._words):
                found += [self._words[piece]] if piece in self._words else pieces.encode(piece)
            return found

        def decode(ids: list[int]) -> str:
            runs = groupby(ids, key=lambda i: i < count)
            return "".join(
                pieces.decode(list(run)) if known else "".join(self._texts.get(i, "") for i in run)
                for known, run in runs
            )

        self._encode, self._decode = encode, decode
        bos = self.control.get(named_tokens(self.file.parent).get("bos_token", ""), int(pieces.bos_id()))
        self.begin = (bos,) if bos >= 0 and adds_bos(self.file.parent, True) else ()

    def _add_to(self, fast: tokenizers.Tokenizer) -> None:
        """Add the tokens that only the files beside it have.

        Raises:
            CheckpointError: one would get another id.
        """
        for i, token in sorted(self._added.items()):
            if fast.id_to_token(i) == token.content and i in fast.get_added_tokens_decoder():
                continue
            fast.add_tokens([token])
            if (found := fast.token_to_id(token.content)) != i:
                raise CheckpointError(f"{self.file}: added token {token.content!r} would be id {found}, not {i}")

    def within(self, vocabulary: int) -> Tokenizer:
        """This tokenizer for a model of so many ids: a text that needs one beyond them is refused.

        Raises:
            CheckpointError: a control token is beyond them that is more than padding.
        """
        beyond = {name: i for name, i in self.control.items() if i >= vocabulary}
        self.control = {name: i for name, i in self.control.items() if name not in beyond}
        if beyond := {name: i for name, i in beyond.items() if not _PADDING.fullmatch(name)}:
            name, i = min(beyond.items(), key=lambda item: item[1])
            raise CheckpointError(f"{self.file}: token {name!r} is id {i}, and the model knows {vocabulary} ids")
        self._limit = vocabulary if self.size > vocabulary else None
        return self

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS or EOS; never a control token, whatever the text holds.

        Raises:
            CheckpointError: one is beyond the model's vocabulary.
        """
        return self._within(list(self._encode(text)))

    def encode_marked(self, text: str, stand_ins: Mapping[str, str] = MappingProxyType({})) -> list[int]:
        """Token ids of a text in which the string of a control token means the token.

        Args:
            stand_ins: characters of the text -> those that they stand for, which form no control token.

        Raises:
            CheckpointError: as of `encode`.
        """
        if self._marked is not None and not any(character in text for character in stand_ins):
            fast = self._marked()  # as the model was trained: what lies before a text counts
            return self._within(list(fast.encode(text, add_special_tokens=False).ids))
        table = str.maketrans(dict(stand_ins))
        ids: list[int] = []
        for piece in _split(text, self.control):
            ids += [self.control[piece]] if piece in self.control else self.encode(piece.translate(table))
        return ids

    def _within(self, ids: list[int]) -> list[int]:
        if self._limit is not None and (beyond := [i for i in ids if i >= self._limit]):
            raise CheckpointError(
                f"{self.file}: the text holds token {self.decode(beyond[:1])!r} (id {beyond[0]}), "
                f"and the model knows {self._limit} ids"
            )
        return ids

    def token(self, token: int | None) -> str:
        """The string of a control token; empty for any other id."""
        return next((name for name, i in self.control.items() if i == token), "")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; those that it does not know, of which a model may have more, are nothing."""
        return str(self._decode([i for i in ids if i < self.size]))

    def to_json(self) -> str:
        """The tokenizer as Hugging Face's tokenizer.json, giving the same ids, for a host that decodes them one by one.

        Raises:
            CheckpointError: a SentencePiece model does something that the other format cannot express.
        """
        if self._marked is None:
            fast = convert(self.file)
            self._add_to(fast)
            return str(fast.to_str(pretty=False))
        made = _keeping_spaces(json.loads(self._fast.to_str()))
        return json.dumps(made, ensure_ascii=False, separators=(",", ":"))  # as the library writes it


def _keeping_spaces(description: dict[str, Any]) -> dict[str, Any]:
    """Without the step that strips a text's first space: decoded one by one, each id would lose its own."""
    decoder = description.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    kept = [
        {"type": "Replace", "pattern": {"String": step["replacement"]}, "content": " "}
        if step.get("type") == "Metaspace"
        else step
        for step in steps
        if step.get("type") != "Strip"
    ]
    if kept != steps:
        description["decoder"] = {"type": "Sequence", "decoders": kept}
    return description


def _split(text: str, known: Mapping[str, int]) -> list[str]:
    """The text cut before and behind every one of these tokens, the longest first where several match."""
    names = sorted(known, key=len, reverse=True)
    found = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    return [piece for piece in found if piece]
