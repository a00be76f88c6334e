"""Whether a recipe's names and options all mean something."""

from __future__ import annotations

from dataclasses import dataclass

from llmconv.chat.template import ChatTemplate
from llmconv.errors import RecipeError
from llmconv.passes.base import Pass
from llmconv.passes.manager import PassManager
from llmconv.plugins.registry import Registry
from llmconv.quantization.calibration import CALIBRATION
from llmconv.recipe.recipe import CalibrationSection, Recipe
from llmconv.sources.source import ModelConfig, Source


@dataclass(frozen=True)
class Checked:
    """A recipe whose names and options have all been found to mean something."""

    recipe: Recipe
    source: Source
    config: ModelConfig
    passes: list[Pass]

    @property
    def calibration(self) -> CalibrationSection | None:
        """The recipe's calibration, where a pass asks for one."""
        return self.recipe.calibration if any(p.needs_calibration for p in self.passes) else None


def check(recipe: Recipe, registry: Registry, *, calibrated: bool = False) -> Checked:
    """Make the recipe's source and passes, without reading a weight.

    Args:
        calibrated: whether encodings are at hand already, so that no calibration text is needed.

    Raises:
        LlmconvError: what is wrong, where, and what to do.
    """
    source = registry.create(
        "source", recipe.model.source, {"checkpoint": recipe.model.checkpoint, **recipe.model.options}
    )
    names = [entry.name for entry in recipe.passes]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise RecipeError(f"passes: '{twice[0]}' stands twice; options go by its name, so remove one")
    passes = [registry.create("pass", entry.name, entry.options) for entry in recipe.passes]
    PassManager(passes)
    config = source.config()
    for p in passes:
        p.check(config)
    lengths = {f"graphs.{name}.context": graph.context for name, graph in recipe.graphs.items()}
    if recipe.calibration is not None:
        lengths["calibration.tokens"] = recipe.calibration.tokens
    for where, tokens in lengths.items():
        if tokens > config.positions:
            raise RecipeError(f"{where} = {tokens}, but the checkpoint knows only {config.positions} positions")
    if CALIBRATION in recipe.graphs:
        raise RecipeError(f"graphs.{CALIBRATION}: the name is taken by the graph that calibrates; choose another")
    if not calibrated and any(p.needs_calibration for p in passes):
        if recipe.calibration is None:
            raise RecipeError("calibration: missing; the passes need text to calibrate on")
        if not recipe.calibration.text.is_file():
            raise RecipeError(f"calibration.text: {recipe.calibration.text}: no such file")
    if recipe.verify.text is not None and not recipe.verify.text.is_file():
        raise RecipeError(f"verify.text: {recipe.verify.text}: no such file")
    if recipe.chat.template is not None:
        ChatTemplate(recipe.chat.template, "chat.template", {})
    return Checked(recipe, source, config, passes)
