"""The built-in chooser."""

from llmconv import hookimpl
from llmconv.choosing import Chooser
from llmconv_plugins.choosers.htp import HTP


@hookimpl
def register_choosers() -> tuple[type[Chooser], ...]:
    """The built-in chooser."""
    return (HTP,)
