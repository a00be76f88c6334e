"""The token that ends a turn, in the forms that chat templates have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmconv.chat.template import ChatTemplate
from llmconv.chat.turn_end import turn_end
from llmconv.recipe import shipped
from llmconv.tokenizer import Tokenizer

NAMES = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"]
LOOP = "{{% for m in messages %}}{}{{% endfor %}}"
CHATML = LOOP.format("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n") + "<|im_start|>assistant\n"
ZEPHYR = LOOP.format("<|{{ m.role }}|>\n{{ m.content }}</s>\n") + "<|assistant|>\n"
LLAMA2 = LOOP.format(
    "{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}"
)
BARE = LOOP.format("<|{{ m.role }}|>{{ m.content }}") + "<|assistant|>"
PLAIN = LOOP.format("{{ m.role }}: {{ m.content }}\n")
TRIMMED = LOOP.format("<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    (tmp_path / "tokenizer.model").write_bytes((shipped.folder() / "tiny_llama/tokenizer.model").read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({name: 2048 + i for i, name in enumerate(NAMES)}))
    return Tokenizer.find(tmp_path)


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, 2049), (ZEPHYR, 2), (LLAMA2, 2), (BARE, None), (PLAIN, None), (TRIMMED, None)],
    ids=["chatml", "zephyr", "llama2", "nothing between turns", "no tokens", "changes what is said"],
)
def test_end_of_a_turn(tokenizer: Tokenizer, template: str, end: int | None) -> None:
    assert turn_end(ChatTemplate(template, "x", {}), tokenizer) == end


def test_a_template_that_refuses_conversations(tokenizer: Tokenizer) -> None:
    assert turn_end(ChatTemplate("{{ raise_exception('no') }}", "x", {}), tokenizer) is None
