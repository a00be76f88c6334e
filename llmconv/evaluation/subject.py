"""What a proof works from: the bundle's recipe over the checkpoint, where that still is, and over the bundle alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from llmconv.backends.backend import Backend
from llmconv.bundle.bundle import Bundle
from llmconv.decoding.decoder import Decoder, Runner
from llmconv.errors import CheckpointError
from llmconv.graph.model import Model
from llmconv.plugins.registry import Registry
from llmconv.prepare.remake import described, recipe_of, remake
from llmconv.prepare.resolve import Checked, check
from llmconv.prepare.text import held_out
from llmconv.prepare.trace import spread_ids
from llmconv.recipe.recipe import Recipe
from llmconv.runtimes.runtime import GraphRuntime, rope_table
from llmconv.weights.store import WeightStore


@dataclass
class Subject:
    """A bundle that is being proved.

    Attributes:
        progress: called with a stage and an item before each piece of work.
        float_weights: the checkpoint's, as the structural passes make them; known once these have run.
    """

    bundle: Bundle
    registry: Registry
    progress: Callable[[str, str], None]
    float_weights: WeightStore | None = None

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as it was applied."""
        return recipe_of(self.bundle)

    @cached_property
    def backend(self) -> Backend:
        """The backend that built the bundle."""
        made: Backend = self.registry.create("backend", self.recipe.backend.name, self.recipe.backend.options)
        return made

    @cached_property
    def described(self) -> Checked:
        """The recipe over the bundle's own copy of the checkpoint's small files; weights are not to be had from it."""
        return described(self.bundle, self.registry)

    @cached_property
    def checkpoint(self) -> Checked | None:
        """The structural passes over the checkpoint, or None when that is gone."""
        structural = [(e, p) for e, p in zip(self.recipe.passes, self.described.passes, strict=True) if p.structural]
        recipe = self.recipe.model_copy(update={"calibration": None, "passes": [e for e, _ in structural]})
        try:
            checked = check(recipe.model_copy(update={"verify": self.described.recipe.verify}), self.registry)
            checked.source.weights()
        except CheckpointError:
            return None
        return checked

    @property
    def gone(self) -> str:
        """Why a step that needs the checkpoint did not run."""
        return f"not run: the checkpoint {self.recipe.model.checkpoint} is gone"

    @cached_property
    def windows(self) -> list[list[int]]:
        """Held-out windows of the shortest context, each with BOS; ids spread over the vocabulary without a text."""
        if windows := held_out(self.described):
            return windows
        context, config = min(g.context for g in self.bundle.graphs.values()), self.described.config
        ids = spread_ids(config.vocabulary, range(8 * (context - 1)))
        return [[config.bos, *ids[i : i + context - 1]] for i in range(0, len(ids), context - 1)]

    @cached_property
    def quantized(self) -> Model:
        """The recipe's graphs after all passes, over the bundle's encodings and its weights on their grids."""
        return remake(self.bundle, self.registry)

    def decoder(self, runner: Runner) -> Decoder:
        """A decoder over one graph alone."""
        return Decoder([runner], rope_table(self.bundle))

    def open(self, runtime: str, graph: str) -> AbstractContextManager[list[Runner]]:
        """One graph of the bundle on a runtime."""
        return self.runtime(runtime).open(self.bundle, [graph])

    def runtime(self, name: str) -> GraphRuntime:
        """A runtime by name."""
        made: GraphRuntime = self.registry.create("runtime", name, {})
        return made
