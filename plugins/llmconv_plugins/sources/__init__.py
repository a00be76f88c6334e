"""The built-in sources."""

from llmconv import hookimpl
from llmconv.sources import Source
from llmconv_plugins.sources.llama import LlamaSource


@hookimpl
def register_sources() -> list[type[Source]]:
    """The built-in sources."""
    return [LlamaSource]
