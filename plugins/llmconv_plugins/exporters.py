"""The built-in exporters."""

from llmconv import Exporter, hookimpl
from llmconv_plugins.genai.exporter import GenAI


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    """The built-in exporters."""
    return [GenAI]
