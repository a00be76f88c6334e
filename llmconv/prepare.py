"""From a recipe to graphs: trace the source at every shape, run the passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from llmconv.chat.template import ChatTemplate
from llmconv.checkpoint.shapes import ShapeStore
from llmconv.checkpoint.source import ModelConfig, Source
from llmconv.checkpoint.tokenizer import Tokenizer
from llmconv.checkpoint.weights import WeightStore
from llmconv.errors import RecipeError
from llmconv.graph.edit import collector_spared
from llmconv.graph.model import Model, WeightSink
from llmconv.graph.trace import trace
from llmconv.passes.base import Pass
from llmconv.passes.manager import PassManager, PassReport, Verifier
from llmconv.plugins import Registry
from llmconv.quantization.calibration import CALIBRATION
from llmconv.recipe.recipe import Recipe
from llmconv.steps import Steps

BREAK = "\n\f\n"  # between documents in a text file
WINDOWS = 32  # of held-out text
PRIME = 7919  # multiples of it, modulo a vocabulary, rarely repeat
VERIFIED_TOKENS = 40  # read by every graph after every pass


@dataclass(frozen=True)
class Checked:
    """A recipe whose names and options have all been found to mean something."""

    recipe: Recipe
    source: Source
    config: ModelConfig
    passes: list[Pass]


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


def read_windows(text: Path, tokenizer: Tokenizer, bos: int, tokens: int, limit: int | None = None) -> list[list[int]]:
    """A text's documents as windows of `tokens` ids, each starting with BOS.

    Raises:
        RecipeError: the text is not UTF-8, or too short for one window.
    """
    try:
        documents = text.read_text(encoding="utf-8").split(BREAK)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{text}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    stream = [t for document in documents for t in tokenizer.encode(document)]
    body = tokens - 1
    windows = [[bos, *stream[i : i + body]] for i in range(0, len(stream) - body + 1, body)]
    if not windows:
        raise RecipeError(f"{text}: holds {len(stream)} tokens, fewer than one window of {tokens}; give a longer text")
    if limit is None or limit >= len(windows):
        return windows
    step = len(windows) / limit  # spread over the whole text
    return [windows[int(i * step)] for i in range(limit)]


def held_out(checked: Checked) -> list[list[int]]:
    """Windows of the recipe's held-out text, of the shortest context; none without a text. Raises as `read_windows`."""
    context, text = min(g.context for g in checked.recipe.graphs.values()), checked.recipe.verify.text
    if text is None:
        return []
    return read_windows(text, checked.source.tokenizer(), checked.config.bos, context, WINDOWS)


def spread_ids(vocabulary: int, numbers: range) -> list[int]:
    """Ids spread over the vocabulary, of which few repeat."""
    return [i * PRIME % vocabulary for i in numbers]


def trace_graphs(
    checked: Checked, weights: WeightStore, sink: WeightSink | None = None, steps: Steps | None = None
) -> Model:
    """Trace the source at the shapes of every graph of the recipe, and of calibration where passes need it."""
    shapes = {name: (g.ar, g.context) for name, g in checked.recipe.graphs.items()}
    calibration, samples = checked.recipe.calibration, []
    if calibration is not None and any(p.needs_calibration for p in checked.passes):
        shapes[CALIBRATION] = (calibration.tokens, calibration.tokens)
        tokenizer = checked.source.tokenizer()
        samples = read_windows(calibration.text, tokenizer, checked.config.bos, calibration.tokens, calibration.samples)
    module = checked.source.module()
    graphs = {name: trace(module, ar, context, name) for name, (ar, context) in shapes.items()}
    return Model(graphs, weights, checked.config, calibration=samples, sink=sink, steps=steps)


def lay_out(checked: Checked) -> tuple[Model, dict[str, int]]:
    """The recipe's graphs after the structural passes, from the checkpoint's configuration alone.

    Returns:
        The model, whose weights cannot be read, and the bits that the other passes will give to values and weights.

    Raises:
        PassError: a pass cannot be applied, or reads a weight.
    """
    module, manager = checked.source.module(), PassManager(checked.passes)
    graphs = {name: trace(module, g.ar, g.context, name) for name, g in checked.recipe.graphs.items()}
    model = Model(graphs, ShapeStore(module), checked.config)
    manager.run(model, stop=manager.structural)
    return model, manager.widths(model)


def make_verifier(checked: Checked, model: Model) -> Verifier:
    """What every pass is compared with: the source, on ids spread over the vocabulary."""
    count = min(VERIFIED_TOKENS, *(g.context for g in model.graphs.values()))
    tokens = [checked.config.bos, *spread_ids(checked.config.vocabulary, range(1, count))]
    return Verifier(trace(checked.source.module(), count, count, "source"), model.weights, tokens)


def prepare(
    checked: Checked,
    weights: WeightStore,
    *,
    verify: bool,
    announce: Callable[[str], None] = lambda _name: None,
    laid_out: Callable[[Model, dict[str, int]], None] = lambda _model, _widths: None,
    sink: WeightSink | None = None,
    steps: Steps | None = None,
) -> tuple[Model, list[PassReport]]:
    """Trace and run every pass; the calibration graph is gone afterwards.

    Args:
        laid_out: called before the first pass that changes numbers, with the recipe's graphs and the bits that the
            passes to come will give to values and weights.
    """
    announce("trace")
    if verify:
        held_out(checked)  # what is wrong with the text is found before the work, not after it
    model = trace_graphs(checked, weights, sink, steps)
    manager = PassManager(checked.passes, make_verifier(checked, model) if verify else None, announce)
    reports = manager.run(model, stop=manager.structural)
    wanted = {name: graph for name, graph in model.graphs.items() if name != CALIBRATION}
    shown = replace(model, graphs=wanted)
    laid_out(shown, manager.widths(shown))
    with collector_spared():
        reports += manager.run(model, done=manager.structural)
    model.graphs.pop(CALIBRATION, None)
    return model, reports
