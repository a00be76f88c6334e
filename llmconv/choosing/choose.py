"""Choose a recipe: the best draft that fits, in as few parts as the target holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from llmconv.backends.backend import Progress
from llmconv.choosing.chooser import Chooser, Facts
from llmconv.choosing.draft import Draft, Line, Section
from llmconv.choosing.parts import in_parts
from llmconv.errors import PassError, RecipeError, ResourceError
from llmconv.planning.plan import Plan, plan
from llmconv.plugins.registry import Registry
from llmconv.prepare.resolve import files_of
from llmconv.quantities import size
from llmconv.recipe.located import located, pinned, title_of
from llmconv.recipe.recipe import Recipe
from llmconv.sources.licence import licence_of
from llmconv.sources.model_config import ModelConfig

CONTEXT = 4096  # positions, where the model knows as many
NIGHT = 12 * 3600.0  # seconds of one core, before parts are built
REFERENCE = 1.6e9  # parameters, a tied head counted twice, that a reference holds in float32 beside it on 16 GB
HELD_OUT = "shipped:tiny_llama/heldout.txt"


@dataclass(frozen=True)
class Wish:
    """What a recipe is wanted for.

    Attributes:
        checkpoint: as a recipe names it.
        target: a chipset, or a device that carries it.
        context: positions that graphs are to see, at most.
        budget: bytes of all weights, at most.
        backend: instead of the chooser's own.
        name: of the recipe; by default the checkpoint's.
        adapters: folders of adapters to merge -> the weight of each.
    """

    checkpoint: str
    target: str
    context: int = CONTEXT
    budget: int | None = None
    backend: str | None = None
    name: str | None = None
    adapters: Mapping[Path, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """A recipe that was chosen.

    Attributes:
        draft: its sections, with the reason of each choice, and notes for whoever converts the model.
        plan: what converting by it will need, and what the target's limits say.
    """

    draft: Draft
    plan: Plan

    @property
    def text(self) -> str:
        """TOML."""
        return str(self.draft)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that the text says."""
        return Recipe.loads(self.text, "the chosen recipe", Path.cwd())


def choose(wish: Wish, *, registry: Registry | None = None, progress: Progress = lambda _stage, _item: None) -> Chosen:
    """Choose a recipe from the checkpoint's configuration alone; the same sizes give the same recipe.

    Raises:
        RecipeError: no chipset has that name, or nothing chooses for it.
        ResourceError: the target holds no draft, or none is within the budget.
        LlmconvError: the checkpoint is not one that can be converted.
    """
    registry = registry or Registry.load()

    def plan_of(draft: Draft) -> Plan:
        progress("choose", draft.title)
        judging = _chooser(wish, registry).backend  # whose limits count, whatever backend builds
        return plan(Recipe.loads(str(draft), "the chosen recipe", Path.cwd(), backend=judging), registry=registry)

    refused: list[str] = []
    too_large: list[int] = []
    slow: tuple[Draft, Plan] | None = None
    for draft in drafts(wish, registry):
        try:
            whole = plan_of(draft)
        except PassError as error:
            refused.append(f"not {draft.label}: {error}")
            continue
        if wish.budget is not None and whole.weight_bytes > wish.budget:
            too_large.append(whole.weight_bytes)
        elif _seconds(whole) <= NIGHT:
            return Chosen(*in_parts(draft.noting(*refused), whole, plan_of))
        else:
            slow = slow or (draft.noting(f"{draft.label}: takes more than a night on one core"), whole)
    if slow is not None:
        return Chosen(*in_parts(*slow, plan_of))
    if too_large and wish.budget is not None:
        raise ResourceError(
            f"{wish.checkpoint}: the weights take {size(min(too_large))} at least, more than the budget of "
            f"{size(wish.budget)}; allow more, or choose a smaller model"
        )
    raise PassError(f"{wish.checkpoint}: no recipe can be chosen; {'; '.join(refused)}")


def drafts(wish: Wish, registry: Registry) -> Iterator[Draft]:
    """Whole recipes for a wish, the best first, each in one part.

    Raises:
        LlmconvError: as of `choose`.
    """
    if missing := [folder for folder in wish.adapters if not folder.is_dir()]:
        raise RecipeError(f"{missing[0]}: no such folder; give an adapter's")
    chooser, chipset, written = _chooser(wish, registry), registry.chipset(wish.target), Path(wish.checkpoint)
    folder = located(written, files_of(registry, weights=False))
    checkpoint = str(pinned(written, folder))
    source = registry.source(registry.source_for(folder), {"checkpoint": folder})
    config = source.config()
    context, why = _context(wish, config)
    shapes = {name: tuple(p.shape) for name, p in source.module().named_parameters()}
    kept = None if wish.adapters else source.row_bits()
    facts = Facts(config, shapes, chipset, context, limited=wish.budget is not None, kept=kept)
    title = title_of(written)
    licence = licence_of(folder).name
    before = (
        Section("", (Line("name", wish.name or _slug(title)),)),
        Section("model", (Line("checkpoint", checkpoint, f"licence: {licence}" if licence else ""), *_merged(wish))),
        Section("target", (Line("name", wish.target),)),
    )
    backend = Line("name", wish.backend or chooser.backend, "as asked for" if wish.backend else "what the target takes")
    after = (Section("backend", (backend,)), _proof(facts.parameters))
    short = (f"graphs see {context} positions, {why}",) if context < wish.context else ()
    for draft in chooser.drafts(facts):
        made = replace(draft, sections=(*before, *draft.sections, *after), title=title, notes=(*short, *draft.notes))
        for graph in made.graphs():
            made = made.changed(f"{graph}.context", context, why)
        yield made


def _chooser(wish: Wish, registry: Registry) -> Chooser:
    chipset = registry.chipset(wish.target)
    if not chipset.chooser:
        raise RecipeError(f"{chipset.name}: nothing chooses recipes for it; 'llmconv recipe copy' brings one to change")
    made: Chooser = registry.create("chooser", chipset.chooser, {})
    return made


def _context(wish: Wish, config: ModelConfig) -> tuple[int, str]:
    """Positions, and why so many."""
    bounds = [
        (wish.context, f"of {config.positions} that the model knows"),
        (config.positions, "all that the model knows"),
    ]
    if config.window is not None:
        bounds.append((config.window, "as far as the narrowest layer sees, up to which alone graphs are exact"))
    return min(bounds, key=lambda bound: bound[0])


def _merged(wish: Wish) -> tuple[Line, ...]:
    """The line for adapters, if there are any."""
    given = {str(folder): weight for folder, weight in wish.adapters.items()}
    return (Line("adapter", given, "merged, each times its weight"),) if given else ()


def _proof(parameters: int) -> Section:
    if parameters > REFERENCE:
        why = f"{parameters / 1e9:.1f} billion parameters in float32 would take more memory than a laptop has"
        return Section("verify", (Line("passes", False, why),))
    text = Line("text", HELD_OUT, "no part of the calibration text; English documentation")
    return Section("verify", (Line("passes", True, "in float32, which fits a laptop's memory"), text))


def _seconds(found: Plan) -> float:
    """Of what comes before parts are built, on one core."""
    return sum(stage.seconds for stage in found.stages if not stage.parallel)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "model"
