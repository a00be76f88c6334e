"""What a hook gave: whether it is what the hook is to give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmconv.errors import PluginError
from llmconv.plugins.contract import lacks_of_family, lacks_of_folder, lacks_of_observer
from llmconv.target import Chipset

LOWERINGS, CHIPSETS, FAMILIES = "register_lowerings", "register_chipsets", "register_families"
OBSERVERS, CHECKUPS, RECIPES = "register_observers", "register_checkups", "register_recipes"
_LACKS = {FAMILIES: lacks_of_family, OBSERVERS: lacks_of_observer, RECIPES: lacks_of_folder}


def checked(hook: str, found: Any) -> Any:
    """What a hook gave: a table of lowerings as it is, of all else a list.

    Raises:
        PluginError: it is something else.
    """
    if hook == LOWERINGS:
        if not isinstance(found, Mapping):
            raise PluginError(f"gives {type(found).__name__}; return a dict of op -> function")
        pairs = [f"{op!r}: {made!r}" for op, made in found.items() if not callable(op) or not callable(made)]
        if pairs:
            raise PluginError(
                f"gives {{{pairs[0]}}}; return a dict of op -> function, as {{aten.abs.default: lower_abs}}"
            )
        return found
    if isinstance(found, type | str) or not isinstance(found, Iterable):
        raise PluginError(f"gives {getattr(found, '__name__', type(found).__name__)}; return a list")
    items = list(found)
    lacking = _LACKS.get(hook)
    if lacking is not None and (wrong := next((x for x in items if lacking(x)), None)) is not None:
        raise PluginError(f"gives {getattr(wrong, '__name__', wrong)!s}, which {lacking(wrong)}")
    if hook == CHIPSETS and (wrong := next((x for x in items if not isinstance(x, Chipset)), None)):
        raise PluginError(f"gives {type(wrong).__name__}; return instances of llmconv.target.Chipset")
    return items
