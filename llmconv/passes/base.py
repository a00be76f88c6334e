"""Base classes of passes: over one op, over one part's graph, or over the whole model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from llmconv.errors import PassError
from llmconv.graph.model import NAME, Graph, Model, name_of
from llmconv.graph.splice import TraceCache, splice
from llmconv.passes.context import PassContext
from llmconv.plugins.frame import plugin_code
from llmconv.plugins.registry import Kind
from llmconv.sources.model_config import ModelConfig

Use = tuple[Kind, str, Mapping[str, Any]]
Create = Callable[[Kind, str, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Training:
    """What a pass trains on the calibration text, for the plan.

    Attributes:
        windows: how many samples all steps together take.
        whole: whether the model is held at once, and not a layer at a time.
    """

    windows: int
    whole: bool


@dataclass(frozen=True)
class Pass(ABC):
    """Rewrites a model's graphs. A subclass is a frozen dataclass; its fields are the recipe's options.

    Attributes:
        name: the recipe's name of the pass.
        runs_after: passes that must come earlier in the recipe, if they are in it at all.
        needs: passes that must come earlier in the recipe.
        tolerance: how much further a logit may be from the source's after the pass, in float32, as a share of the
            largest logit; None where the pass chooses encodings: its graphs in float must then compute what they did.
        floor: what the logits must hold over the noise of the encodings that the pass chooses, SQNR in dB.
        splits: the option that sets how many parts a graph becomes, of a pass that splits; a plan advises on it.
        by_place: the options by which it treats layers that are alike differently, as those are whose places these
            name; without them a plan lays out some layers of each kind, and counts the others. None where it may do so
            whatever its options, so that a plan lays out all.
    """

    name: ClassVar[str]
    runs_after: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    needs_calibration: ClassVar[bool] = False
    splits: ClassVar[str | None] = None
    by_place: ClassVar[tuple[str, ...] | None] = None
    tolerance: ClassVar[float | None] = 3e-5  # float32 rounding, 6e-8 a sum, over some hundred sums that are reordered
    floor: ClassVar[float | None] = None

    @property
    def structural(self) -> bool:
        """Whether the pass rewrites graphs alone, and chooses no encodings."""
        return self.tolerance is not None

    @property
    def trains(self) -> Training | None:
        """What the pass trains; None of most."""
        return None

    def check(self, config: ModelConfig) -> None:  # noqa: B027  most passes work at any size
        """Find what cannot work with a model of these sizes, before any work starts.

        Raises:
            PassError: says what.
        """

    def knowing(self, create: Create) -> Pass:
        """The pass to run, made before anything is asked of it: itself, but for one that looks at other plugins in
        `check` and `widths`, which have no context.

        Args:
            create: makes a plugin by kind, name and options, as of `PassContext`.
        """
        return self

    def uses(self) -> Sequence[Use]:
        """The plugins that the pass makes by name, `PassContext.create`, with their options."""
        return ()

    def widths(self, model: Model) -> Mapping[str, float]:
        """Bits that the pass will give to values and weights, by structural name, without reading a weight.

        `llmconv plan` runs the structural passes and asks the others; what has no width counts as float32.
        """
        return {}

    @abstractmethod
    def run(self, model: Model, context: PassContext) -> bool:
        """Rewrite the model in place; say truthfully whether anything changed."""


@dataclass(frozen=True)
class SplitPass(Pass):
    """A pass that cuts graphs between layers, and can say where without the graphs."""

    @abstractmethod
    def lengths(self, layer_bytes: Sequence[int]) -> Sequence[int]:
        """How many layers each part holds.

        Args:
            layer_bytes: of each layer's weights; an embedding counts to the first, lm_head to the last.
        """

    @abstractmethod
    def layer_by_layer(self, layers: int) -> SplitPass:
        """The pass with other options, so that it makes each of a model's layers a part."""


def said(changed: Any) -> bool:
    """What a pass says of itself.

    Raises:
        PassError: neither True nor False.
    """
    if not isinstance(changed, bool):
        raise PassError(f"returned {type(changed).__name__}; return True or False, whether anything changed")
    return changed


@dataclass(frozen=True)
class GraphPass(Pass):
    """A pass over the fx graph of one part at a time."""

    @abstractmethod
    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        """Rewrite one part in place; say truthfully whether anything changed."""

    def run(self, model: Model, context: PassContext) -> bool:
        """Rewrite every part of every graph."""
        changed = [said(self.rewrite(part, graph)) for graph in model.graphs.values() for part in graph.parts]
        return any(changed)


@dataclass(frozen=True)
class RewritePass(GraphPass):
    """Replaces single ops by plain PyTorch, which is traced at the op's shapes and put in its place."""

    targets: ClassVar[tuple[torch._ops.OpOverload, ...]]

    def replacement(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What computes the op's value, in plain PyTorch; called with the op's arguments."""
        raise NotImplementedError(f"{type(self).__name__} needs a method 'replacement', or 'replacement_for'")

    def replacement_for(self, target: torch._ops.OpOverload) -> Callable[..., torch.Tensor]:
        """The replacement of one of several targets; `replacement` for all of them, unless overridden."""
        return self.replacement

    def why_not(self, node: fx.Node) -> str | None:
        """Why this node, which is one of `targets`, is not to be replaced; None where it is.

        `llmconv graph --explain` shows it.
        """
        return None

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        """Replace every node that nothing speaks against; nodes alike share one trace."""
        nodes = [n for n in part.graph.nodes if n.target in self.targets and self.why_not(n) is None]
        cache: TraceCache = {}
        taken = {name_of(n) for n in part.graph.nodes if NAME in n.meta} if nodes else set()
        for node in nodes:
            with plugin_code(self, f"replacement of '{name_of(node)}'"):
                splice(node, self.replacement_for(node.target), cache, taken)
        return bool(nodes)
