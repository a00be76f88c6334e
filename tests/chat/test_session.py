"""A bundle ready to talk: whose chat template counts, and what the template knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmconv import Bundle, ChatError
from llmconv.bundle.bundle import FORMAT
from llmconv.chat.session import Session
from llmconv.recipe import shipped
from llmconv.sources import ModelConfig, Rope
from llmconv.tokenizer import Tokenizer

TOKENIZER = Tokenizer(shipped.folder() / "tiny_llama" / "tokenizer.model")
CONFIG = ModelConfig("llama", 1, 8, 2, 2, 4, 2048, 64, None, 1, (2, 5), (Rope.plain(10000.0, 4),))
HELLO = [{"role": "user", "content": "hello"}]


def bundle(folder: Path, config: Any = None, jinja: str | None = None, recipe: str | None = None) -> Bundle:
    (folder / "source").mkdir()
    manifest = {"format": FORMAT, "recipe": {"chat": {"template": recipe}} if recipe else {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if config is not None:
        (folder / "source" / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (folder / "source" / "chat_template.jinja").write_text(jinja)
    return Bundle(folder)


def rendered(made: Bundle) -> str | None:
    prompt, templated = Session(made, None, CONFIG, TOKENIZER).prompt()  # type: ignore[arg-type]
    return prompt.template.render(HELLO) if templated else None


def test_the_recipes_template_comes_first_then_the_file(tmp_path: Path) -> None:
    for i, (recipe, jinja, expected) in enumerate([("R", "J", "R"), (None, "J", "J"), (None, None, "C")]):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert rendered(bundle(folder, {"chat_template": "C"}, jinja, recipe)) == expected


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    for i, found in enumerate([named, {t["name"]: t["template"] for t in named}]):
        (tmp_path / str(i)).mkdir()
        assert rendered(bundle(tmp_path / str(i), {"chat_template": found})) == "D"


@pytest.mark.parametrize("found", [[{"name": "tool_use", "template": "T"}], 3])
def test_no_default_template(tmp_path: Path, found: Any) -> None:
    with pytest.raises(ChatError, match="neither a text nor a table with one named 'default'"):
        rendered(bundle(tmp_path, {"chat_template": found}))


def test_tokens_are_those_of_the_tokenizer_unless_its_configuration_names_others(tmp_path: Path) -> None:
    shown = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"
    (tmp_path / "a").mkdir()
    assert rendered(bundle(tmp_path / "a", {"chat_template": shown, "pad_token": None})) == "<s>|</s>|"
    (tmp_path / "b").mkdir()
    named = {"eos_token": {"content": "<end>"}, "pad_token": "<pad>"}
    assert rendered(bundle(tmp_path / "b", {"chat_template": shown, **named})) == "<s>|<end>|<pad>"


def test_a_base_model_goes_on_with_the_text(tmp_path: Path) -> None:
    made: Any = None
    prompt, templated = Session(bundle(tmp_path, {}), made, CONFIG, TOKENIZER).prompt()
    assert not templated
    talk = [{"role": "system", "content": "S"}, *HELLO, {"role": "assistant", "content": " you"}, *HELLO]
    assert prompt.template.render(talk) == "<s>S\nhello you\nhello"
    assert prompt.ids(HELLO) == [1, *TOKENIZER.encode("hello")]


def test_a_damaged_configuration(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    (tmp_path / "source" / "tokenizer_config.json").write_text("{")
    with pytest.raises(ChatError, match=r"tokenizer_config\.json: not a table of keys in JSON"):
        rendered(made)
