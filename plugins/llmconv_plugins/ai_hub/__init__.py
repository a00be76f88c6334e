"""QNN through Qualcomm AI Hub; nothing here imports torch or the client before the configuration is found."""

from llmconv import hookimpl
from llmconv.backends import Backend
from llmconv_plugins.ai_hub.backend import AiHubBackend


@hookimpl
def register_backends() -> list[type[Backend]]:
    """The backend that compiles in the cloud."""
    return [AiHubBackend]
