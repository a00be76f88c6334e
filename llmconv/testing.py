"""Try a pass on a small module with random weights: what a pass's own tests call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from llmconv.graph.model import Graph, Model, op_name, outputs_of, shape_of
from llmconv.graph.trace import trace
from llmconv.passes.base import Pass
from llmconv.passes.manager import PassManager, PassReport
from llmconv.passes.verifier import Verifier
from llmconv.weights.store import DictStore

__all__ = ["PassTrial", "random_weights", "try_pass"]

GRAPHS = MappingProxyType({"prompt": (4, 8), "token": (1, 8)})  # name -> (ar, context)


@dataclass(frozen=True)
class PassTrial:
    """What a pass did.

    Attributes:
        model: the graphs after the pass.
        report: of the pass; `errors` holds the largest difference of a logit to the source's, by graph.
        before, after: op -> how often it stands in a graph, by graph; ops by short name (`linear`, `sdpa`, `mul`).
    """

    model: Model
    report: PassReport
    before: dict[str, Counter[str]]
    after: dict[str, Counter[str]]


def random_weights(module: nn.Module, seed: int = 0) -> DictStore:
    """Weights for a module on the meta device: norms around 1, all else with variance 1 / columns."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        tensors[name] = 1 + 0.1 * values if values.ndim == 1 else values * values.shape[-1] ** -0.5
    return DictStore(tensors)


def op_counts(graph: Graph) -> Counter[str]:
    """How often each op stands in a graph, over all its parts."""
    return Counter(op_name(n) for part in graph.parts for n in part.graph.nodes if n.op == "call_function")


def try_pass(
    p: Pass,
    module: nn.Module,
    *,
    after: Sequence[Pass] = (),
    graphs: Mapping[str, tuple[int, int]] = GRAPHS,
    seed: int = 0,
) -> PassTrial:
    """Trace a module with random weights, run passes, and compare every graph with the module.

    Args:
        module: on the meta device; `forward(input_ids, position_ids) -> logits`, with a submodule `rotary`.
        after: passes to run first.
        graphs: name -> (ar, context) of the graphs to trace.

    Raises:
        PassError: a pass cannot be applied, or a graph differs from the module by more than the pass declares.
    """
    weights = random_weights(module, seed)
    model = Model({name: trace(module, ar, context, name) for name, (ar, context) in graphs.items()}, weights, None)
    count = min(context for _, context in graphs.values())
    source = trace(module, count, count, "source")
    vocabulary = shape_of(outputs_of(source.parts[0])["logits"])[-1]
    tokens = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    PassManager(after).run(model)
    before = {name: op_counts(graph) for name, graph in model.graphs.items()}
    (report,) = PassManager([*after, p], Verifier(source, weights, tokens)).run(model, done=len(after))
    return PassTrial(model, report, before, {name: op_counts(graph) for name, graph in model.graphs.items()})
