"""tokenizer.json gives the ids of tokenizer.model, on text that is meant to part them."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from llmconv import CheckpointError
from llmconv.recipe import shipped
from llmconv.tokenizer import Tokenizer, sentencepiece_to_tokenizers
from llmconv.tokenizer.sentencepiece_file import SentencePieceFile
from llmconv.tokenizer.sentencepiece_to_tokenizers import convert

TINY = shipped.folder() / "tiny_llama"
PIECES = TINY / "tokenizer.model"
EXACT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


def lines(count: int, pieces: SentencePieceProcessor) -> Iterator[str]:
    """Whole pieces, every byte value as a character, runs of spaces and letters, names of ids, CJK, emoji."""
    draw = random.Random(0)
    texts = [pieces.id_to_piece(i).replace("▁", " ") for i in range(pieces.get_piece_size())]
    special = ["<s>", "</s>", "<unk>", "<0x41>", "<sep>", "▁", "\u3000", "\r\n", "\t", "\x00", "👩‍👩‍👧", "e\u0301"]
    kinds = [
        lambda: draw.choice(texts),
        lambda: chr(draw.randrange(256)),
        lambda: " " * draw.randrange(5),
        lambda: draw.choice("aex. ") * draw.randrange(9),
        lambda: chr(draw.randrange(0x4E00, 0xA000)),
        lambda: chr(draw.randrange(0x1F300, 0x1F700)),
        lambda: draw.choice(special),
    ]
    yield from ["", " ", "  ", "\n", *map(chr, range(256)), *special]
    for _ in range(count):
        body = "".join(draw.choice(kinds)() for _ in range(draw.randrange(30)))
        yield " " * draw.randrange(3) + body + " " * draw.randrange(3)


def trained(folder: Path, **options: Any) -> Path:
    sentences = (TINY / "calibration.txt").read_text().splitlines()[:400]
    made = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=made, vocab_size=700, minloglevel=2, **options
    )
    file = folder / "tokenizer.model"
    file.write_bytes(made.getvalue())
    return file


def differing(file: Path, count: int) -> list[str]:
    pieces, fast = SentencePieceProcessor(model_file=str(file)), convert(file)
    texts = list(lines(count, pieces))
    found = [e.ids for e in fast.encode_batch(texts, add_special_tokens=False)]
    return [t for t, wanted, ids in zip(texts, pieces.encode(texts), found, strict=True) if list(wanted) != ids]


def test_ids_are_equal_on_ten_thousand_lines() -> None:
    assert differing(PIECES, 10_000) == []


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe", "byte_fallback": True, **EXACT, "user_defined_symbols": ["<sep>", "\n", "  "]},
        {"model_type": "bpe", "byte_fallback": True, **EXACT, "add_dummy_prefix": False},
        {"model_type": "bpe", "normalization_rule_name": "identity"},  # no bytes; spaces stripped
        {"model_type": "unigram", "normalization_rule_name": "identity", "user_defined_symbols": ["<sep>"]},
        {"model_type": "unigram", "byte_fallback": True, **EXACT},
    ],
    ids=["bpe_user_symbols", "bpe_no_prefix", "bpe_stripped", "unigram", "unigram_bytes"],
)
def test_other_models(tmp_path: Path, options: dict[str, Any]) -> None:
    assert differing(trained(tmp_path, **options), 1000) == []


def test_text_of_ids_is_equal_behind_the_space_that_sentencepiece_put_before_it() -> None:
    pieces, fast = SentencePieceProcessor(model_file=str(PIECES)), convert(PIECES)
    for text in filter(None, lines(500, pieces)):
        ids = pieces.encode(text)
        assert fast.decode(ids) == f" {pieces.decode(ids)}"


def test_ids_decoded_one_by_one_keep_their_spaces() -> None:
    """Genie decodes so."""
    fast, text = convert(PIECES), "Return the number of bytes"
    ids = fast.encode(text, add_special_tokens=False).ids
    assert "".join(fast.decode([i]) for i in ids) == f" {text}"


def test_names_of_control_symbols_are_text() -> None:
    ids = convert(PIECES).encode("<s>a</s>", add_special_tokens=False).ids
    assert not {1, 2} & set(ids)


def test_conversion_is_reproducible_and_read_back(tmp_path: Path) -> None:
    content = Tokenizer(PIECES).to_json()
    assert content == Tokenizer(PIECES).to_json()
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    copy = Tokenizer(tmp_path / "tokenizer.json")
    assert copy.encode("Return the") == Tokenizer(PIECES).encode("Return the")
    assert copy.size == 2048
    assert copy.to_json() == content  # a tokenizer.json is given as it is


def test_what_cannot_be_expressed_is_refused(tmp_path: Path) -> None:
    file = trained(tmp_path, model_type="char")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: algorithm 4 cannot be expressed as tokenizer\.json"):
        convert(file)
    file = trained(tmp_path, model_type="bpe", treat_whitespace_as_suffix=True)
    with pytest.raises(CheckpointError, match="spaces as suffixes cannot be expressed"):
        convert(file)


def test_a_difference_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece_to_tokenizers, "SPACE", "_")
    with pytest.raises(CheckpointError, match=r"cannot be expressed as tokenizer\.json: '.*' would become other ids"):
        convert(PIECES)


def test_damaged(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"\xff\xff\xff")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        SentencePieceFile.read(file)
