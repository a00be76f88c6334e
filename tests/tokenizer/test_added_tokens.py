"""Tokens that the files beside a tokenizer add, BOS where its own rules put it, and texts that are read whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Fast
from tokenizers.processors import TemplateProcessing

from llmconv import CheckpointError
from llmconv.recipe import shipped
from llmconv.tokenizer import Tokenizer

PIECES = shipped.folder() / "tiny_llama" / "tokenizer.model"
CHATML = ["<|im_start|>", "<|im_end|>"]
TEXT = "<|im_start|>user\nlist the values<|im_end|>\n"


def fast(folder: Path, added: tuple[str, ...] = (), *, bos: bool = True, **parts: Any) -> Path:
    made = Fast.from_str(Tokenizer(PIECES).to_json())
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in added])
    if bos:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    content = json.loads(made.to_str()) | parts
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def pieces(folder: Path, **files: Any) -> Path:
    shutil.copy(PIECES, folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_texts_are_neither_truncated_nor_padded(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {
        **{"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
    }
    tokenizer = Tokenizer.find(fast(tmp_path, truncation=truncation, padding=padding))
    assert tokenizer.encode(TEXT * 9) == Tokenizer(PIECES).encode(TEXT * 9)
    assert tokenizer.encode("a") == Tokenizer(PIECES).encode("a")
    written = json.loads(tokenizer.to_json())  # what Genie reads
    assert (written["truncation"], written["padding"]) == (None, None)


@pytest.mark.parametrize("form", ["tokenizer.json", "added_tokens.json", "tokenizer_config.json"])
def test_added_tokens_are_tokens_wherever_they_are_named(tmp_path: Path, form: str) -> None:
    if form == "tokenizer.json":
        fast(tmp_path, tuple(CHATML))
    elif form == "added_tokens.json":
        pieces(tmp_path, added_tokens=dict(zip(CHATML, (2048, 2049), strict=True)))
    else:
        described = {str(2048 + i): {"content": text, "special": True} for i, text in enumerate(CHATML)}
        pieces(tmp_path, tokenizer_config={"added_tokens_decoder": described})
    tokenizer = Tokenizer.find(tmp_path)
    body = tokenizer.encode("user\nlist the values")
    ids = tokenizer.encode_marked(TEXT)
    assert ids[0] == 2048
    assert ids.count(2049) == 1
    assert len(ids) <= len(body) + 4
    assert tokenizer.size == 2050
    assert not {2048, 2049} & set(tokenizer.encode(TEXT))  # in a text that someone wrote they are text
    assert tokenizer.decode([*body, 2049]) == tokenizer.decode(body)
    exported = Fast.from_str(tokenizer.to_json())
    assert exported.token_to_id("<|im_end|>") == 2049


def test_words_that_were_added_are_shown(tmp_path: Path) -> None:
    tokenizer = Tokenizer.find(pieces(tmp_path, added_tokens={"llmconv": 2048, "<sep>": 2049}))
    ids = tokenizer.encode("the llmconv tool")
    assert 2048 in ids
    assert "llmconv" in tokenizer.decode(ids)
    assert tokenizer.control["<sep>"] == 2049


def test_ids_that_only_the_model_has_are_nothing(tmp_path: Path) -> None:
    for folder in (PIECES.parent, fast(tmp_path)):
        tokenizer = Tokenizer.find(folder)
        ids = tokenizer.encode("the values")
        assert tokenizer.decode([*ids, 2048, 9999]) == tokenizer.decode(ids)


@pytest.mark.parametrize(("bos", "begin"), [(True, (1,)), (False, ())])
def test_bos_stands_where_the_post_processor_puts_it(tmp_path: Path, bos: bool, begin: tuple[int, ...]) -> None:
    folder = fast(tmp_path, bos=bos)
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": not bos}))  # of no account there
    assert Tokenizer.find(folder).begin == begin


@pytest.mark.parametrize(
    ("config", "begin"),
    [({}, (1,)), ({"add_bos_token": False}, ()), ({"add_bos_token": None}, (1,)), ({"bos_token": "</s>"}, (2,))],
)
def test_bos_of_a_sentencepiece_model(tmp_path: Path, config: dict[str, Any], begin: tuple[int, ...]) -> None:
    assert Tokenizer.find(pieces(tmp_path, tokenizer_config=config)).begin == begin


def test_a_vocabulary_smaller_than_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.find(pieces(tmp_path, added_tokens={"word": 2048})).within(2048)
    assert tokenizer.encode("the values")
    with pytest.raises(CheckpointError, match=r"the text holds token 'word' \(id 2048\), and the model knows 2048 ids"):
        tokenizer.encode("a word")
    special = Tokenizer.find(pieces(tmp_path, added_tokens={"<|im_end|>": 2048}))
    with pytest.raises(CheckpointError, match=r"token '<\|im_end\|>' is id 2048, and the model knows 2048 ids"):
        special.within(2048)


@pytest.mark.parametrize("name", ["[PAD]", "<|padding|>"])
def test_padding_may_lie_beyond_the_vocabulary(tmp_path: Path, name: str) -> None:
    tokenizer = Tokenizer.find(pieces(tmp_path, added_tokens={name: 2048})).within(2048)
    assert tokenizer.control.get("<s>") == 1
    assert max(tokenizer.encode_marked(f"a {name}")) < 2048


def test_a_tokenizer_json_that_lacks_the_place_of_an_added_token(tmp_path: Path) -> None:
    fast(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 3000}')
    with pytest.raises(CheckpointError, match=r"added token '<\|im_end\|>' would be id 2048, not 3000"):
        Tokenizer.find(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens", "[]x", "not a table of keys in JSON"),
        ("added_tokens", '{"a": "b"}', "the id of 'a' must be a whole number, not 'b'"),
        ("tokenizer_config", '{"added_tokens_decoder": {"x": {}}}', r"added_tokens_decoder\.x is damaged"),
    ],
)
def test_damaged_files_beside_it(tmp_path: Path, name: str, content: str, message: str) -> None:
    pieces(tmp_path)
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.find(tmp_path)
    assert f"{name}.json" in str(caught.value)


def test_first_spaces_stay_for_hosts_that_decode_ids_one_by_one(tmp_path: Path) -> None:
    """As Llama's own tokenizer.json is: its decoder drops the first space of what it is given."""
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    tokenizer = Tokenizer.find(fast(tmp_path, decoder={"type": "Sequence", "decoders": steps}))
    ids = tokenizer.encode("list the values")
    exported = Fast.from_str(tokenizer.to_json())
    assert "".join(exported.decode([i]) for i in ids) == " list the values"
