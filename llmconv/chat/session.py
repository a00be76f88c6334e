"""A bundle opened on a runtime, ready to talk: the dialog, the tokenizer and the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.bundle.bundle import SOURCE, Bundle
from llmconv.chat.chat import Chat
from llmconv.chat.prompt import Prompt
from llmconv.chat.template import ChatTemplate
from llmconv.decoding.dialog import Dialog
from llmconv.decoding.generate import Sampling
from llmconv.errors import ChatError
from llmconv.plugins.registry import Registry
from llmconv.runtimes.runtime import Runtime, source_of
from llmconv.sources.source import ModelConfig
from llmconv.tokenizer.tokenizer import Tokenizer

TEMPLATE_FILE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"  # Hugging Face's names

# For a base model: its text and the answers run on, and each message begins on a line of its own.
CONTINUATION = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ '\\n' if m.role != 'user' }}{% endfor %}"


@dataclass(frozen=True)
class Session:
    """What talking with a bundle needs."""

    bundle: Bundle
    dialog: Dialog
    config: ModelConfig
    tokenizer: Tokenizer

    def prompt(self) -> tuple[Prompt, bool]:
        """How messages become ids, and whether a chat template says so.

        Raises:
            ChatError: the template is wrong.
        """
        template = find_template(self.bundle, self.config, self.tokenizer)
        if template is not None:
            return Prompt(template, self.tokenizer), True
        tokens = {"bos_token": self.tokenizer.token(self.config.bos)}
        return Prompt(ChatTemplate(CONTINUATION, "continuation", tokens), self.tokenizer), False


@contextmanager
def open_session(bundle: Bundle, runtime: str, sampling: Sampling, registry: Registry) -> Iterator[Session]:
    """Open a bundle on a runtime, by its name; what the runtime holds is freed at the end.

    Raises:
        PluginError: no runtime has that name.
        LlmconvError: the bundle lacks a file, or the runtime refuses it.
    """
    opener: Runtime = registry.create("runtime", runtime, {})
    source = source_of(bundle, registry)
    config, tokenizer = source.config(), source.tokenizer()
    with opener.dialog(bundle, sampling, config.eos) as dialog:
        yield Session(bundle, dialog, config, tokenizer)


@contextmanager
def open_chat(
    bundle: Bundle,
    runtime: str = "onnxruntime",
    *,
    sampling: Sampling | None = None,
    system: str = "",
    limit: int | None = None,
    registry: Registry | None = None,
) -> Iterator[Chat]:
    """A conversation with a bundle; what the runtime holds is freed at the end.

    Args:
        runtime: its name, such as "qnn" for the HTP simulator.
        sampling: how tokens are chosen; the likeliest each time by default.
        system: what the model is told before the conversation.
        limit: ids of an answer at most; half of the context by default.

    Raises:
        PluginError: no runtime has that name.
        LlmconvError: the bundle lacks a file, the runtime refuses it, or the chat template is wrong.
    """
    with open_session(bundle, runtime, sampling or Sampling(), registry or Registry.load()) as session:
        prompt, templated = session.prompt()
        yield Chat(session.dialog, prompt, system=system, limit=limit, trims=templated)


def find_template(bundle: Bundle, config: ModelConfig, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The recipe's chat template, else the checkpoint's, else None.

    Raises:
        ChatError: it is wrong.
    """
    file = bundle.folder / SOURCE / TOKENIZER_CONFIG
    values = _read(file)
    tokens = {"bos_token": tokenizer.token(config.bos), "eos_token": "".join(map(tokenizer.token, config.eos[:1]))}
    for name, value in values.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    if text := bundle.manifest["recipe"].get("chat", {}).get("template"):
        return ChatTemplate(text, "the recipe's chat.template", tokens)
    if (jinja := file.with_name(TEMPLATE_FILE)).is_file():
        return ChatTemplate(jinja.read_text(encoding="utf-8"), TEMPLATE_FILE, tokens)
    if (found := values.get("chat_template")) is None:
        return None
    return ChatTemplate(_default(found), f"chat_template of {TOKENIZER_CONFIG}", tokens)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ChatError(f"{file}: not a table of keys in JSON ({error})") from error


def _default(found: Any) -> str:
    """The template itself, or the one named so in a list of them."""
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise ChatError(f"{TOKENIZER_CONFIG}: chat_template is neither a text nor a list with one named 'default'")
    return found
