"""Try a backend: convert a tiny model with it, and prove what it built."""

from __future__ import annotations

from pathlib import Path

from llmconv.apply_recipe import apply
from llmconv.backends.backend import Backend
from llmconv.bundle.bundle import Bundle
from llmconv.errors import BackendError
from llmconv.plugins.hooks import hookimpl
from llmconv.plugins.registry import Registry
from llmconv.recipe.overrides import quoted
from llmconv.recipe.recipe import Recipe
from llmconv.testing.checkpoints import tiny_recipe

SMALL = ("graphs.prompt.ar=8", "graphs.prompt.context=32", "graphs.token.context=32", "calibration.tokens=32")


def try_backend(backend: type[Backend], folder: Path, *changes: str) -> Bundle:
    """Apply the smallest shipped recipe to random weights with a backend, installed or not, and prove the bundle.

    Args:
        folder: to be made, for the checkpoint, the recipe and, as `bundle`, the result.
        changes: of the recipe, e.g. `backend.level=2` or `passes.split_model.parts=1`.

    Returns:
        The bundle; its report holds the proof, of which every check held.

    Raises:
        LlmconvError: the backend failed.
        BackendError: a check of the proof failed.
    """
    registry = Registry.load()
    if backend.name not in registry.of_kind("backend"):
        registry.add(backend.__module__, _Brings(backend))
    file = tiny_recipe(folder)
    given = [*SMALL, f"output.folder={quoted(folder / 'bundle')}", *changes]
    bundle = apply(Recipe.load(file, given, backend=backend.name), registry=registry, verify=True)
    for check in bundle.report["proof"]:
        if check["passed"] is False:
            raise BackendError(f"{check['name']}: {check['measured']}, must be {check['bound']}")
    return bundle


class _Brings:
    """A plugin of one backend."""

    def __init__(self, backend: type[Backend]) -> None:
        self._backend = backend

    @hookimpl
    def register_backends(self) -> list[type[Backend]]:
        """It."""
        return [self._backend]
