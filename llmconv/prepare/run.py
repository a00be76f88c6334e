"""From a recipe to graphs: trace the source at every shape, run the passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llmconv.errors import RecipeError
from llmconv.graph.model import Model, io_of
from llmconv.passes.context import PassContext, WeightSink
from llmconv.passes.manager import PassManager, PassReport
from llmconv.passes.observer import Observers
from llmconv.prepare.resolve import Checked
from llmconv.prepare.text import calibration_samples, held_out
from llmconv.prepare.trace import make_verifier, trace_graphs
from llmconv.quantization.calibration import CALIBRATION
from llmconv.weights.store import WeightStore
from llmconv.work.collector import collector_spared
from llmconv.work.executor import Workers
from llmconv.work.steps import Steps
from llmconv.work.threads import Threads


@collector_spared()
def prepare(
    checked: Checked,
    weights: WeightStore,
    *,
    verify: bool,
    announce: Callable[[str], None] = lambda _name: None,
    laid_out: Callable[[Model, dict[str, float]], None] = lambda _model, _widths: None,
    sink: WeightSink | None = None,
    steps: Steps | None = None,
    observers: Observers | None = None,
    workers: Workers | None = None,
) -> tuple[Model, PassContext, list[PassReport]]:
    """Trace and run every pass; the calibration graph is gone afterwards.

    Args:
        laid_out: called before the first pass that changes numbers, with the recipe's graphs and the bits that the
            passes to come will give to values and weights.
        workers: do the tasks that passes make; threads of this process by default.
    """
    announce("trace")
    if verify:
        held_out(checked)  # what is wrong with the text is found before the work, not after it
    model = trace_graphs(checked, weights)
    names = {str(n.target) for g in model.graphs.values() for p in g.parts for n in p.graph.find_nodes(op="get_attr")}

    def hashed() -> dict[str, str]:
        return {name: sha for name in sorted(names) if (sha := weights.sha256(name)) is not None}

    context = PassContext(
        calibration_samples(checked),
        sink,
        steps,
        hashed=hashed,
        create=checked.create,
        adapters=checked.source.low_rank_changes(),
        workers=workers or Threads(),
    )
    verifier = make_verifier(checked, model) if verify else None
    manager = PassManager(checked.passes, verifier, announce, observers)
    reports = manager.run(model, context, stop=manager.structural)
    _check_adapters(checked, model)
    wanted = {name: graph for name, graph in model.graphs.items() if name != CALIBRATION}
    shown = replace(model, graphs=wanted)
    laid_out(shown, manager.widths(shown))
    reports += manager.run(model, context, done=manager.structural)
    model.graphs.pop(CALIBRATION, None)
    return model, context, reports


def _check_adapters(checked: Checked, model: Model) -> None:
    """Whether the graphs take what the recipe's adapters give.

    Raises:
        RecipeError: adapters are named and no pass makes inputs of them, or the other way around.
    """
    parts = [part for graph in model.graphs.values() for part in graph.parts]
    takes = any(io.kind == "lora" for part in parts for io in io_of(part)[0].values())
    if checked.recipe.model.switchable and not takes:
        raise RecipeError("model.switchable: no pass makes inputs of adapters; 'llmconv passes' lists them")
    if takes and not checked.recipe.model.switchable:
        raise RecipeError("model.switchable: missing; the graphs take adapters as inputs, and the recipe names none")
