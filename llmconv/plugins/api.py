"""The version of what plugins build on, and whether a plugin's own range holds it.

The first number changes when a documented name goes or means something else, which a deprecation has announced for one
minor release of llmconv before; the second when something is added.
"""

from __future__ import annotations

from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from llmconv.errors import PluginError

API_VERSION = "1.0"
ASKED = "llmconv_api"  # of a plugin's module: the range that it was written for, e.g. ">=1.0,<2"


def check_api(module: Any) -> None:
    """Whether a hook module is for this version; one that says nothing is.

    Raises:
        PluginError: it asks for another range, or for none that can be read.
    """
    asked = getattr(module, ASKED, None)
    if asked is None:
        return
    try:
        holds = SpecifierSet(asked).contains(API_VERSION)
    except (InvalidSpecifier, TypeError) as error:
        raise PluginError(f"{ASKED} = {asked!r} is no range of versions; write one as '>=1.0,<2'") from error
    if not holds:
        raise PluginError(
            f"asks for plugin API {asked}, and this llmconv has {API_VERSION}; install a version of it that fits"
        )
