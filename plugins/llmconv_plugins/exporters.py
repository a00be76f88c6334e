"""The built-in exporters."""

from llmconv import hookimpl
from llmconv.backends import Exporter
from llmconv_plugins.epcontext.exporter import EPContext
from llmconv_plugins.genai.exporter import GenAI
from llmconv_plugins.genie.exporter import Genie
from llmconv_plugins.geniex.exporter import GenieX


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    """The built-in exporters."""
    return [EPContext, GenAI, Genie, GenieX]
