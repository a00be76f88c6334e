"""Text to ids and back, from either kind of file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors

from llmconv import CheckpointError
from llmconv.recipe import shipped
from llmconv.tokenizer import Tokenizer

PIECES = shipped.folder() / "tiny_llama" / "tokenizer.model"
TEXT = "Once upon a time, a cat sat."


@pytest.fixture
def json_file(tmp_path: Path) -> Path:
    """A byte-level tokenizer without merges that would add BOS (id 256) if asked."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = FastTokenizer(models.BPE(vocab={**alphabet, "<s>": 256}, merges=[]))
    fast.add_special_tokens(["<s>"])
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    file = tmp_path / "tokenizer.json"
    fast.save(str(file))
    return file


def test_sentencepiece_round_trip() -> None:
    tokenizer = Tokenizer(PIECES)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert all(isinstance(i, int) for i in ids)
    assert not {1, 2} & set(ids)  # neither BOS nor EOS


def test_hugging_face_round_trip(json_file: Path) -> None:
    tokenizer = Tokenizer(json_file)
    ids = tokenizer.encode(TEXT)
    assert len(ids) == len(TEXT)
    assert 256 not in ids
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode([256, *ids]) == TEXT


@pytest.mark.parametrize("text", ["", "é ü", "日本"])
def test_ends_of_the_range(json_file: Path, text: str) -> None:
    for file in (PIECES, json_file):
        tokenizer = Tokenizer(file)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_hugging_faces_file_is_found_first(json_file: Path) -> None:
    folder = json_file.parent
    (folder / "tokenizer.model").write_bytes(PIECES.read_bytes())
    assert Tokenizer.find(folder).file == json_file  # as transformers does
    json_file.unlink()
    assert Tokenizer.find(folder).file == folder / "tokenizer.model"


def test_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json or tokenizer\.model; copy"):
        Tokenizer.find(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("data", [b"", b"not a tokenizer", b"{}"])
def test_damaged(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.find(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: not a tokenizer that can be read")
    assert "\n" not in str(caught.value)


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Tokenizer(tmp_path / "tokenizer.json")


def test_size_counts_every_id(json_file: Path) -> None:
    assert Tokenizer(PIECES).size == 2048
    assert Tokenizer(json_file).size == 257
