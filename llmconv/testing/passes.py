"""Try a pass on a small module with random weights."""

from __future__ import annotations

import tomllib
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
from llmconv.plugins.options import validated
from llmconv.testing.modules import random_weights, tiny_module

GRAPHS = MappingProxyType({"prompt": (4, 8), "token": (1, 8)})  # name -> (ar, context)


@dataclass(frozen=True)
class PassTrial:
    """What a pass did.

    Attributes:
        made: the pass, with its options.
        model: the graphs after the pass.
        report: of the pass; `errors` holds the largest difference of a logit to the source's, by graph.
        before, after: op -> how often it stands in a graph, by graph; ops by short name (`linear`, `sdpa`, `mul`).
    """

    made: Pass
    model: Model
    report: PassReport
    before: dict[str, Counter[str]]
    after: dict[str, Counter[str]]

    def again(self) -> bool:
        """Run the pass once more on its result, and say whether that changed anything; one that is done says no."""
        (report,) = PassManager([self.made]).run(self.model)
        return report.changed


def op_counts(graph: Graph) -> Counter[str]:
    """How often each op stands in a graph, over all its parts."""
    return Counter(op_name(n) for part in graph.parts for n in part.graph.nodes if n.op == "call_function")


def try_pass(
    p: Pass | type[Pass],
    module: nn.Module | None = None,
    *,
    options: str = "",
    after: Sequence[Pass] = (),
    graphs: Mapping[str, tuple[int, int]] = GRAPHS,
    seed: int = 0,
) -> PassTrial:
    """Trace a module with random weights, run passes, and compare every graph with the module.

    After the pass each node has a structural name of its own, and the shape and dtype that its `meta["val"]` says.

    Args:
        p: the pass, or its class.
        module: on the meta device; `forward(input_ids, position_ids) -> logits`, with a submodule `rotary`; by default
            `tiny_module("gqa")`.
        options: of a class, as a recipe writes them: lines of TOML.
        after: passes to run first.
        graphs: name -> (ar, context) of the graphs to trace.

    Raises:
        PassError: a pass cannot be applied, or a graph differs from the module by more than the pass declares.
        RecipeError: an option is unknown, missing, or of the wrong type.
    """
    made = p(**validated(p, tomllib.loads(options), f"pass '{p.name}'")) if isinstance(p, type) else p
    module = tiny_module() if module is None else module
    weights = random_weights(module, seed)
    model = Model({name: trace(module, ar, context, name) for name, (ar, context) in graphs.items()}, weights, None)
    count = min(context for _, context in graphs.values())
    source = trace(module, count, count, "source")
    vocabulary = shape_of(outputs_of(source.parts[0])["logits"])[-1]
    tokens = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    PassManager(after).run(model)
    before = {name: op_counts(graph) for name, graph in model.graphs.items()}
    (report,) = PassManager([*after, made], Verifier(source, weights, tokens)).run(model, done=len(after))
    return PassTrial(made, model, report, before, {name: op_counts(graph) for name, graph in model.graphs.items()})
