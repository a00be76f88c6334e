"""The chat template that a checkpoint's small files hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmconv.chat.template import ChatTemplate
from llmconv.errors import ChatError
from llmconv.sources.model_config import ModelConfig
from llmconv.tokenizer.added_tokens import CONFIG, SPECIAL, roles
from llmconv.tokenizer.tokenizer import Tokenizer

# Hugging Face's names
TEMPLATE, TABLE = "chat_template.jinja", "chat_template.json"
# For a base model: its text and the answers run on, and each message begins on a line of its own.
CONTINUATION = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ '\\n' if m.role != 'user' }}{% endfor %}"


def checkpoint_template(
    files: Mapping[str, bytes], config: ModelConfig, tokenizer: Tokenizer, own: str | None = None
) -> ChatTemplate | None:
    """A recipe's own template, else the checkpoint's, else None.

    Args:
        files: the checkpoint's small files, by name.

    Raises:
        ChatError: it is wrong.
    """
    tokens = {"bos_token": tokenizer.token(config.bos), "eos_token": "".join(map(tokenizer.token, config.eos[:1]))}
    tokens |= {**roles(_read(files, SPECIAL)), **roles(_read(files, CONFIG))}
    if own is not None:
        return ChatTemplate(own, "the recipe's chat.template", tokens)
    if TEMPLATE in files:
        return ChatTemplate(_text(files, TEMPLATE), TEMPLATE, tokens)
    for name in (TABLE, CONFIG):
        if (found := _read(files, name).get("chat_template")) is not None:
            return ChatTemplate(_default(found, name), f"chat_template of {name}", tokens)
    return None


def continuation(tokenizer: Tokenizer) -> ChatTemplate:
    """The template of a model without one."""
    tokens = {"bos_token": "".join(map(tokenizer.token, tokenizer.begin))}
    return ChatTemplate(CONTINUATION, "continuation", tokens)


def _text(files: Mapping[str, bytes], name: str) -> str:
    try:
        return files[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ChatError(f"{name}: not UTF-8 at byte {error.start}") from error


def _read(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        return dict(json.loads(files[name]))
    except (ValueError, TypeError) as error:
        raise ChatError(f"{name}: not a table of keys in JSON ({error})") from error


def _default(found: Any, name: str) -> str:
    """The template itself, or the one named so in a table of them or a list."""
    if isinstance(found, list):
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str):
        raise ChatError(f"{name}: chat_template is neither a text nor a table with one named 'default'")
    return found
