"""A bundle opened on a runtime, ready to talk: the dialog, the tokenizer and the chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llmconv.bundle.bundle import SOURCE, Bundle
from llmconv.chat.chat import Chat
from llmconv.chat.checkpoint_template import checkpoint_template, continuation
from llmconv.chat.prompt import Prompt
from llmconv.decoding.dialog import Dialog
from llmconv.errors import BackendError
from llmconv.plugins.registry import Registry
from llmconv.runtimes.runtime import Runtime, source_of
from llmconv.sources.model_config import ModelConfig
from llmconv.sources.sampling import Sampling
from llmconv.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Session:
    """What talking with a bundle needs."""

    bundle: Bundle
    dialog: Dialog
    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def stops(self) -> list[str]:
        """Texts at which an answer ends, as the recipe has them."""
        return list(self.bundle.manifest["recipe"].get("chat", {}).get("stop", []))

    def prompt(self) -> tuple[Prompt, bool]:
        """How messages become ids, and whether a chat template says so.

        Raises:
            ChatError: the template is wrong.
        """
        folder = self.bundle.folder / SOURCE
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        own = self.bundle.manifest["recipe"].get("chat", {}).get("template")
        template = checkpoint_template(files, self.config, self.tokenizer, own)
        if template is not None:
            return Prompt(template, self.tokenizer), True
        return Prompt(continuation(self.tokenizer), self.tokenizer), False


@contextmanager
def open_session(bundle: Bundle, runtime: str, sampling: Sampling, registry: Registry) -> Iterator[Session]:
    """Open a bundle on a runtime, by its name; what the runtime holds is freed at the end.

    Raises:
        PluginError: no runtime has that name.
        LlmconvError: the bundle lacks a file, or the runtime refuses it; or it follows no JSON schema, and is to.
    """
    opener: Runtime = registry.create("runtime", runtime, {})
    if sampling.schema and not opener.follows_schemas:
        able = [
            name for name, kind in registry.of_kind("runtime").items() if getattr(kind.plugin, "follows_schemas", False)
        ]
        raise BackendError(f"runtime '{runtime}' holds no text to a JSON schema; {_named(able)}")
    config = bundle.config
    tokenizer = source_of(bundle, registry).tokenizer().within(config.vocabulary)
    with opener.dialog(bundle, sampling, config.eos) as dialog:
        yield Session(bundle, dialog, config, tokenizer)


def _named(runtimes: Sequence[str]) -> str:
    return f"take {' or '.join(map(repr, runtimes))}" if runtimes else "no installed one does"


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
        sampling: how tokens are chosen; by default as the checkpoint asks for it, else the likeliest each time.
        system: what the model is told before the conversation.
        limit: ids of an answer at most; half of the context by default.

    Raises:
        PluginError: no runtime has that name.
        LlmconvError: the bundle lacks a file, the runtime refuses it, or the chat template is wrong.
    """
    with open_session(bundle, runtime, sampling or bundle.config.sampling, registry or Registry.load()) as session:
        prompt, templated = session.prompt()
        yield Chat(session.dialog, prompt, system=system, limit=limit, trims=templated, stops=session.stops)
