"""The built-in source, and the families that it reads."""

from llmconv import hookimpl
from llmconv.sources import Family, Source
from llmconv_plugins.sources.decoder_source import DecoderSource
from llmconv_plugins.sources.families import FAMILIES


@hookimpl
def register_sources() -> list[type[Source]]:
    """The built-in source."""
    return [DecoderSource]


@hookimpl
def register_families() -> tuple[type[Family], ...]:
    """The built-in families."""
    return FAMILIES
