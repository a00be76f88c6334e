"""Whether this machine holds what recipes that come with llmconv will need, as far as their checkpoints are here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmconv.doctor.finding import Finding
from llmconv.errors import LlmconvError, RecipeError
from llmconv.plugins.registry import Registry
from llmconv.quantities import size
from llmconv.recipe import hub, shipped
from llmconv.recipe.located import located
from llmconv.recipe.recipe import Recipe


def recipes(registry: Registry) -> Iterator[Finding]:
    """A plan of each whose checkpoint is here; the others are counted."""
    others = []
    for name in shipped.names():
        recipe = Recipe.load(shipped.folder() / f"{name}.toml")
        if _is_here(recipe.model.checkpoint):
            yield _planned(name, recipe, registry)
        else:
            others.append(name)
    if others:
        said = f"{len(others)}, whose checkpoints are not here; 'llmconv plan RECIPE' says what one needs"
        yield Finding("other recipes", said)


def _is_here(checkpoint: Path) -> bool:
    try:
        return not checkpoint.as_posix().startswith(hub.PREFIX) and located(checkpoint).exists()
    except RecipeError:  # inside a package that is not installed
        return False


def _planned(name: str, recipe: Recipe, registry: Registry) -> Finding:
    what = f"recipe {name}"
    try:
        from llmconv.planning.plan import plan  # noqa: PLC0415  imports torch, which may be what is missing

        made = plan(recipe, registry=registry)
        made.require()
    except LlmconvError as error:
        return Finding(what, str(error), "missing", "what the message says")
    except ImportError as error:
        return Finding(what, f"cannot be planned: {error}", "missing", "install the packages above")
    memory = "" if made.memory is None else f" of {size(made.memory)}"
    found = f"memory ≈ {size(made.memory_need)}{memory}, disk ≈ {size(made.disk_need)} of {size(made.disk)}"
    return Finding(what, found)
