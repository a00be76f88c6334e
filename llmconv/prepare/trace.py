"""A recipe's graphs as the source gives them, and what they are compared with."""

from __future__ import annotations

from torch import nn

from llmconv.graph.model import Model
from llmconv.graph.trace import trace
from llmconv.passes.manager import PassManager
from llmconv.passes.verifier import Verifier
from llmconv.prepare.resolve import Checked
from llmconv.quantization.calibration import CALIBRATION
from llmconv.weights.store import ShapeStore, WeightStore
from llmconv.work.collector import collector_paused

PRIME = 7919  # multiples of it, modulo a vocabulary, rarely repeat


VERIFIED_TOKENS = 40  # read by every graph after every pass


def spread_ids(vocabulary: int, numbers: range) -> list[int]:
    """Ids spread over the vocabulary, of which few repeat."""
    return [i * PRIME % vocabulary for i in numbers]


def trace_graphs(checked: Checked, weights: WeightStore) -> Model:
    """Trace the source at the shapes of every graph of the recipe, and of calibration where passes need it."""
    shapes = {name: (g.ar, g.context) for name, g in checked.recipe.graphs.items()}
    if checked.calibration is not None:
        shapes[CALIBRATION] = (checked.calibration.tokens, checked.calibration.tokens)
    module = checked.source.module()
    graphs = {name: trace(module, ar, context, name) for name, (ar, context) in shapes.items()}
    return Model(graphs, weights, checked.config)


def lay_out(checked: Checked, module: nn.Module | None = None) -> tuple[Model, dict[str, float]]:
    """The recipe's graphs after the structural passes, from the checkpoint's configuration alone.

    Args:
        module: in place of the source's.

    Returns:
        The model, whose weights cannot be read, and the bits that the other passes will give to values and weights.

    Raises:
        PassError: a pass cannot be applied, or reads a weight.
    """
    with collector_paused():
        manager, model = PassManager(checked.passes), shapes_alone(checked, module)
        manager.run(model, stop=manager.structural)
        return model, manager.widths(model)


def shapes_alone(checked: Checked, module: nn.Module | None = None) -> Model:
    """The recipe's graphs before any pass, with weights that cannot be read.

    Args:
        module: in place of the source's.
    """
    module = checked.source.module() if module is None else module
    graphs = {name: trace(module, g.ar, g.context, name) for name, g in checked.recipe.graphs.items()}
    return Model(graphs, ShapeStore(module), checked.config)


def make_verifier(checked: Checked, model: Model) -> Verifier:
    """What every pass is compared with: the source, on ids spread over the vocabulary."""
    tokens = verified_tokens(checked, model)
    return Verifier(trace(checked.source.module(), len(tokens), len(tokens), "source"), model.weights, tokens)


def verified_tokens(checked: Checked, model: Model) -> list[int]:
    """What graphs that are compared read: ids spread over the vocabulary, behind BOS."""
    count = min(VERIFIED_TOKENS, *(g.context for g in model.graphs.values()))
    bos = checked.config.bos
    first = [] if bos is None else [bos]
    return [*first, *spread_ids(checked.config.vocabulary, range(len(first), count))]
