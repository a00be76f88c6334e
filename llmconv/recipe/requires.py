"""The distributions that a recipe asks for, with ranges of versions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from llmconv.errors import RecipeError


def require_installed(requires: Mapping[str, str]) -> None:
    """Whether every distribution is installed in its range.

    Raises:
        RecipeError: the first that is not, and what to install.
    """
    for name, asked in requires.items():
        try:
            wanted = SpecifierSet(asked)
        except InvalidSpecifier as error:
            raise RecipeError(f"requires.{name}: '{asked}' is no range of versions; write one as '>=1.0,<2'") from error
        try:
            found = version(name)
        except (PackageNotFoundError, ValueError):
            raise RecipeError(f"requires.{name}: is not installed; pip install '{name}{asked}'") from None
        if not wanted.contains(found, prereleases=True):
            raise RecipeError(f"requires.{name}: {found} is installed, not {asked}; pip install '{name}{asked}'")
