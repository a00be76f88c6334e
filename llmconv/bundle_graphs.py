"""A bundle's graphs once more as fx, from the bundle alone: its recipe, its small files, its encodings and weights."""

from __future__ import annotations

from llmconv.bundle.bundle import EVALUATION, SOURCE, Bundle
from llmconv.graph.model import Model
from llmconv.lowering.parts import BundleStore, read_encodings
from llmconv.passes.manager import PassManager
from llmconv.plugins import Registry
from llmconv.prepare import Checked, check, trace_graphs
from llmconv.recipe.recipe import Recipe


def recipe_of(bundle: Bundle) -> Recipe:
    """The recipe as it was applied."""
    return Recipe.from_dict(bundle.manifest["recipe"], str(bundle.folder))


def described(bundle: Bundle, registry: Registry) -> Checked:
    """The recipe over the bundle's own copy of the checkpoint's small files; weights are not to be had from it."""
    recipe, text = recipe_of(bundle), bundle.folder / EVALUATION
    update = {
        "model": recipe.model.model_copy(update={"checkpoint": bundle.folder / SOURCE}),
        "verify": recipe.verify.model_copy(update={"text": text if text.is_file() else None}),
        "calibration": None,
    }
    return check(recipe.model_copy(update=update), registry, calibrated=True)


def quantized_graphs(bundle: Bundle, registry: Registry | None = None) -> Model:
    """The graphs of a bundle's recipe after all passes, over the bundle's encodings and its weights on their grids.

    `TorchRunner(graph, model.weights, model.encodings)` runs one as the bundle's files say, in float.

    Raises:
        BundleError: a file that this needs is missing or damaged.
    """
    checked = described(bundle, registry or Registry.load())
    model = trace_graphs(checked, BundleStore(bundle.folder))
    model.encodings = read_encodings(bundle.folder)
    PassManager(checked.passes).run(model)
    return model
