"""A SentencePiece model as a Hugging Face tokenizer that gives the same ids; Genie reads no other kind."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers import decoders, models, normalizers

from llmconv.errors import CheckpointError
from llmconv.tokenizer.sentencepiece_file import BPE, NORMAL, UNIGRAM, UNUSED, USER_DEFINED, Piece, SentencePieceFile

SPACE = "▁"
FIRST_STAND_IN = 0xF0000  # private-use characters stand for user-defined symbols, which nothing may merge
UNREACHABLE = 1000.0  # below every score: control symbols and bytes are never read from text


def convert(file: Path) -> tokenizers.Tokenizer:
    """A tokenizer of the same ids, checked on the text of every piece.

    Raises:
        CheckpointError: the model does something that the other format cannot express.
    """
    model = SentencePieceFile.read(file)
    fast = build(model)
    _check_equal(file, model, fast)
    return fast


def build(model: SentencePieceFile) -> tokenizers.Tokenizer:
    """A tokenizer of the same ids.

    Raises:
        CheckpointError: as of `convert`.
    """
    _check_expressible(model)
    stand_ins = {
        piece.text: chr(FIRST_STAND_IN + number)
        for number, piece in enumerate(p for p in model.pieces if p.kind == USER_DEFINED)
    }
    fast = tokenizers.Tokenizer(_bpe(model, stand_ins) if model.algorithm == BPE else _unigram(model, stand_ins))
    fast.normalizer = _normalizer(model, stand_ins)
    fast.decoder = _decoder(model, stand_ins)
    return fast


def _check_expressible(model: SentencePieceFile) -> None:
    wrong = {
        f"algorithm {model.algorithm}": model.algorithm not in (BPE, UNIGRAM),
        "unused pieces": any(p.kind == UNUSED for p in model.pieces),
        "spaces as suffixes": model.spaces_as_suffixes,
        "unescaped spaces": not model.escapes_spaces,
    }
    found = [name for name, holds in wrong.items() if holds]
    if found:
        raise CheckpointError(f"{model.file}: {found[0]} cannot be expressed as tokenizer.json")


def _bpe(model: SentencePieceFile, stand_ins: dict[str, str]) -> Any:
    """Merges ranked by the score of what they make, as SentencePiece chooses them; equal ones go from left to right."""
    normal = {p.text: p for p in model.pieces if p.kind == NORMAL}
    ranked = []
    for number, (text, piece) in enumerate(normal.items()):
        for cut in range(1, len(text)):
            if text[:cut] in normal and text[cut:] in normal:
                ranked.append((-piece.score, number, text[:cut], text[cut:]))
    return models.BPE(
        vocab={stand_ins.get(p.text, p.text): i for i, p in enumerate(model.pieces)},
        merges=[(left, right) for _, _, left, right in sorted(ranked)],
        unk_token=model.pieces[model.unknown].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SentencePieceFile, stand_ins: dict[str, str]) -> Any:
    lowest = min(p.score for p in model.pieces if p.kind == NORMAL)

    def score(piece: Piece) -> float:
        if piece.kind == NORMAL:
            return piece.score
        return 0.0 if piece.kind == USER_DEFINED else lowest - UNREACHABLE

    vocabulary = [(stand_ins.get(p.text, p.text), score(p)) for p in model.pieces]
    return models.Unigram(vocabulary, model.unknown, model.byte_fallback)


def _normalizer(model: SentencePieceFile, stand_ins: dict[str, str]) -> Any:
    steps: list[Any] = []
    if model.character_map:
        steps.append(normalizers.Precompiled(model.character_map))
    if model.strips_spaces:
        steps.append(normalizers.Replace(tokenizers.Regex(r"\A +|[ ▁]+\z"), ""))
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if model.prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    longest_first = sorted(stand_ins.items(), key=lambda item: -len(item[0]))
    return normalizers.Sequence(steps + [normalizers.Replace(*pair) for pair in longest_first])


def _decoder(model: SentencePieceFile, stand_ins: dict[str, str]) -> Any:
    """Keeps the space before the first word: Genie decodes ids one by one, and every word would lose its space."""
    steps: list[Any] = [decoders.Replace(stand_in, text) for text, stand_in in stand_ins.items()]
    steps.append(decoders.Replace(SPACE, " "))
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    return decoders.Sequence(steps)


def _check_equal(file: Path, model: SentencePieceFile, fast: tokenizers.Tokenizer) -> None:
    """On each piece's text alone, and on each with its neighbour."""
    texts = [p.text.replace(SPACE, " ") for p in model.pieces]
    texts += [left + right for left, right in pairwise(texts)]
    expected = SentencePieceProcessor(model_file=str(file)).encode(texts)
    for text, wanted, found in zip(texts, expected, fast.encode_batch(texts, add_special_tokens=False), strict=True):
        if list(wanted) != found.ids:
            raise CheckpointError(f"{file}: cannot be expressed as tokenizer.json: {text!r} would become other ids")
