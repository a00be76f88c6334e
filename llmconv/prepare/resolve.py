"""Whether a recipe's names and options all mean something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llmconv.chat.checkpoint_template import checkpoint_template
from llmconv.chat.template import ChatTemplate
from llmconv.chat.turn_end import turn_end
from llmconv.decoding.decoder import LongText
from llmconv.errors import ChatError, CheckpointError, RecipeError
from llmconv.lowering.onnx_pass import OnnxPass
from llmconv.passes.base import Pass
from llmconv.passes.manager import PassManager
from llmconv.plugins.registry import Kind, Registry
from llmconv.quantization.calibration import CALIBRATION
from llmconv.recipe.hub import Wanted
from llmconv.recipe.located import located, pinned
from llmconv.recipe.recipe import Recipe
from llmconv.recipe.sections import CalibrationSection
from llmconv.sources.licence import licence_files
from llmconv.sources.model_config import ModelConfig
from llmconv.sources.source import Source
from llmconv.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Checked:
    """A recipe whose names and options have all been found to mean something, and that names its source.

    Attributes:
        create: makes a plugin by kind, name and options.
        used: the plugins that the passes make by name.
        onnx_passes: over the ONNX of each part.
    """

    recipe: Recipe
    source: Source
    config: ModelConfig
    passes: list[Pass]
    create: Callable[[Kind, str, Mapping[str, Any]], Any]
    used: list[Any]
    onnx_passes: list[OnnxPass]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's, held to the model's vocabulary.

        Raises:
            CheckpointError: there is none, or a control token of it is beyond the model.
        """
        return self.source.tokenizer().within(self.config.vocabulary)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The recipe's chat template, else the checkpoint's, else None.

        Raises:
            ChatError: it is wrong.
        """
        return checkpoint_template(self.source.description(), self.config, self.tokenizer, self.recipe.chat.template)

    @property
    def long(self) -> LongText | None:
        """How long conversations may be beyond the context, where the recipe says so."""
        chat = self.recipe.chat
        return None if chat.length is None else LongText(chat.length, chat.sinks)

    @property
    def calibration(self) -> CalibrationSection | None:
        """The recipe's calibration, where a pass asks for one."""
        return self.recipe.calibration if any(p.needs_calibration for p in self.passes) else None


def files_of(registry: Registry, *, weights: bool) -> Wanted:
    """Which of a repository's files the first source that reads it needs, and those that tell its licence."""

    def wanted(names: Sequence[str]) -> list[str]:
        sources = (entry.plugin for _, entry in sorted(registry.of_kind("source").items()))
        found = next((f for s in sources if (f := s.wanted(names, weights=weights))), ())  # type: ignore[attr-defined]
        return [*found, *licence_files(names)] if found else []

    return wanted


def check(recipe: Recipe, registry: Registry, *, calibrated: bool = False, weights: bool = True) -> Checked:
    """Make the recipe's source and passes, without reading a weight.

    Args:
        calibrated: whether encodings are at hand already, so that no calibration text is needed; nothing is then
            downloaded either.
        weights: whether they will be read, so that a checkpoint on the hub is downloaded with them.

    Raises:
        LlmconvError: what is wrong, where, and what to do.
    """
    recipe.require(registry)
    checkpoint = located(recipe.model.checkpoint, None if calibrated else files_of(registry, weights=weights))
    name = recipe.model.source or registry.source_for(checkpoint)
    source = registry.source(name, recipe.model.source_options(checkpoint))
    found = {"source": name, "checkpoint": pinned(recipe.model.checkpoint, checkpoint)}
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=found)})
    passes = [registry.create("pass", entry.name, entry.options) for entry in recipe.passes]
    PassManager(passes)
    used = [registry.create(*use) for p in passes for use in p.uses()]
    onnx_passes = _onnx_passes(recipe, registry)
    config = source.config()
    _check_ends(config, checkpoint)
    for p in passes:
        p.check(config)
    lengths = {f"graphs.{name}.context": graph.context for name, graph in recipe.graphs.items()}
    if recipe.calibration is not None:
        lengths["calibration.tokens"] = recipe.calibration.tokens
    if recipe.chat.length is not None:
        lengths["chat.length"] = recipe.chat.length
        _check_long(recipe, recipe.chat.length)
    for where, tokens in lengths.items():
        if tokens > config.positions:
            raise RecipeError(f"{where} = {tokens}, but the checkpoint knows only {config.positions} positions")
        if config.window is not None and tokens > config.window:
            raise RecipeError(
                f"{where} = {tokens}, but some layers see a window of {config.window} positions, up to which alone "
                f"the graphs compute the same; choose at most {config.window}"
            )
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
    checked = Checked(recipe, source, config, passes, registry.create, used, onnx_passes)
    return replace(checked, config=_with_turn_end(checked))


def _check_long(recipe: Recipe, length: int) -> None:
    """Graphs are of one context, with a past that has room for a run beside the sinks: so Genie and our host agree."""
    contexts = {graph.context for graph in recipe.graphs.values()}
    most, context, sinks = max(graph.ar for graph in recipe.graphs.values()), max(contexts), recipe.chat.sinks
    if len(contexts) > 1:
        raise RecipeError(f"chat.length: the graphs have contexts of {min(contexts)} to {context}; choose one")
    if length <= context:
        raise RecipeError(
            f"chat.length = {length}: the context holds that; leave it out, or choose more than {context}"
        )
    if most + sinks > context - most:
        raise RecipeError(
            f"chat.length: a graph reads {most} ids at once behind a past of {context - most}, which has no room for "
            f"as many beside {sinks} sinks; choose a smaller ar"
        )


def _onnx_passes(recipe: Recipe, registry: Registry) -> list[OnnxPass]:
    """The passes over ONNX.

    Raises:
        RecipeError: the backend does not build from that ONNX.
    """
    if (
        recipe.onnx_passes
        and not registry.create("backend", recipe.backend.name, recipe.backend.options).builds_from_onnx
    ):
        first = recipe.onnx_passes[0].name
        raise RecipeError(
            f"onnx_passes: backend '{recipe.backend.name}' as it is set up here does not build from the ONNX of parts, "
            f"where '{first}' would count; remove it, or choose another backend"
        )
    return [registry.create("onnx_pass", entry.name, entry.options) for entry in recipe.onnx_passes]


def _check_ends(config: ModelConfig, checkpoint: Path) -> None:
    """Whether the ids that begin and end texts are the model's.

    Raises:
        CheckpointError: one is beyond its vocabulary.
    """
    ids = [("bos", config.bos), *(("eos", i) for i in config.eos)]
    for name, i in ids:
        if i is not None and not 0 <= i < config.vocabulary:
            raise CheckpointError(
                f"{checkpoint}: its {name} token is id {i}, and the model knows {config.vocabulary} ids; "
                "mend the checkpoint's configuration"
            )


def _with_turn_end(checked: Checked) -> ModelConfig:
    """The sizes, with what ends a turn in the chat template among what ends a text."""
    config = checked.config
    try:
        template = checked.template
        end = turn_end(template, checked.tokenizer) if template is not None else None
    except (ChatError, CheckpointError):  # which whoever asks for the template, or the tokenizer, is told
        return config
    return config if end is None else replace(config, eos=tuple(dict.fromkeys((*config.eos, end))))
