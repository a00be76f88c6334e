"""Which plugin lowers an op that several lower: the one that the recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.errors import PluginError, RecipeError
from llmconv.naming import nearest

Lowers = list[tuple[str, Any]]  # the distributions that lower an op, with their functions


def require_known(chosen: Mapping[str, str], ops: Mapping[Any, Lowers]) -> None:
    """Whether all that a recipe chooses is there.

    Args:
        chosen: op -> distribution.

    Raises:
        RecipeError: nothing lowers such an op, or that distribution does not.
    """
    known = {str(op): [_name(name) for name, _ in found] for op, found in ops.items()}
    for op, wanted in chosen.items():
        if op not in known:
            raise RecipeError(f"lowerings: no plugin lowers '{op}'{nearest(op, known)}")
        if wanted not in known[op]:
            raise RecipeError(f"lowerings: '{wanted}' does not lower {op}; name one of {', '.join(known[op])}")


def chosen_of(op: Any, functions: Lowers, wanted: str | None) -> tuple[str, Any]:
    """The distribution that lowers an op, and its function; of several that nobody chose from, one that refuses."""
    found = [one for one in functions if wanted in (None, _name(one[0]))]
    return found[0] if len(found) == 1 else (found[0][0], _refusal(op, found))


def _refusal(op: Any, functions: Lowers) -> Any:
    def refuse(*_: Any) -> None:
        first, second = functions[0][0], functions[1][0]
        raise PluginError(
            f'op {op} is lowered by both {first} and {second}; choose in the recipe, [lowerings] "{op}" = '
            f'"{_name(first)}", or uninstall one'
        )

    return refuse


def _name(distribution: str) -> str:
    """Without its version."""
    return distribution.partition(" ")[0]
