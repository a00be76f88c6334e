"""Whether this machine is set up for AI Hub."""

from __future__ import annotations

from collections.abc import Iterator

from llmconv import BackendError
from llmconv.doctor import Finding
from llmconv_plugins.ai_hub.account import check_configuration


def ai_hub() -> Iterator[Finding]:
    """The client's configuration, for --backend qnn_ai_hub; the service is not asked."""
    try:
        check_configuration()
    except BackendError as error:
        yield Finding(
            "AI Hub", "not set up (for --backend qnn_ai_hub)", "optional", str(error).removeprefix("AI Hub: ")
        )
    else:
        yield Finding("AI Hub", "set up")
