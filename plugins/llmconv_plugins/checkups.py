"""What `llmconv doctor` looks at beside llmconv itself; nothing heavy is imported before it looks."""

from __future__ import annotations

from llmconv import hookimpl
from llmconv.doctor import Checkup
from llmconv_plugins.ai_hub.checkup import ai_hub
from llmconv_plugins.phones.checkup import phones
from llmconv_plugins.qnn.checkup import qnn


@hookimpl
def register_checkups() -> list[Checkup]:
    """All of them."""
    return [qnn, phones, ai_hub]
