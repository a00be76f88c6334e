"""What a proof works from: the bundle's recipe over the checkpoint, where that still is, and over the bundle alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

from torch import Tensor

from llmconv.backends.backend import Backend
from llmconv.bundle.adapters import adapter_table
from llmconv.bundle.bundle import Bundle
from llmconv.bundle.weights import BundleStore
from llmconv.decoding.decoder import Decoder, Runner, whole_runs, widest
from llmconv.errors import CheckpointError, PluginError, RecipeError
from llmconv.evaluation.agreement import Comparison
from llmconv.graph.model import Model
from llmconv.passes.context import PassContext
from llmconv.plugins.registry import Registry
from llmconv.prepare.remake import context_of, described, recipe_of, remake
from llmconv.prepare.resolve import Checked, check
from llmconv.prepare.text import held_out
from llmconv.prepare.trace import spread_ids
from llmconv.recipe.located import located
from llmconv.recipe.recipe import Recipe
from llmconv.runtimes.runtime import GraphRuntime, rope_table
from llmconv.sources.source import digests
from llmconv.weights.coded import Coded, coded_of
from llmconv.weights.store import WeightStore

SMALL = 20_000_000  # weights of a model that takes little memory, so that more than one thing is done with it at once


class ConvertedWeights:
    """A checkpoint's weights, each compared with what was converted when it is first read.

    Args:
        converted: sha256 of each tensor's bytes, by name.
        folder: of the checkpoint, for the error.
    """

    def __init__(self, store: WeightStore, converted: Mapping[str, str], folder: Path) -> None:
        self.store, self.converted, self.folder = store, converted, folder
        self._compared: set[str] = set()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A weight, or a range of its rows, as float32.

        Raises:
            CheckpointError: it is not what was converted.
        """
        if name not in self._compared and name in self.converted:
            if rows is not None:
                self.store.read(name)  # bytes are hashed when a tensor is read whole
            weight = self.store.read(name, rows)
            if (sha256 := self.store.sha256(name)) is not None:
                check_converted(self.converted, {name: sha256}, self.folder)
            self._compared.add(name)
            return weight
        return self.store.read(name, rows)

    def sha256(self, name: str) -> str | None:
        """As the store has it."""
        return self.store.sha256(name)

    def coded(self, name: str) -> Coded | str | None:
        """As the store has it."""
        return coded_of(self.store, name)


def check_converted(converted: Mapping[str, str], hashes: Mapping[str, str], folder: Path) -> None:
    """Hold tensors that were read to what was converted, as far as that is known.

    Args:
        converted: sha256 by name.
        hashes: likewise, of those that were read.

    Raises:
        CheckpointError: one is another.
    """
    for name, sha256 in sorted(hashes.items()):
        if converted.get(name, sha256) != sha256:
            raise CheckpointError(_other(folder, f"tensor '{name}'"))


def _other(folder: Path, what: str) -> str:
    return f"{folder}: {what} is not what the bundle was converted from; put the checkpoint back, or convert again"


@dataclass
class Subject:
    """A bundle that is being proved.

    Attributes:
        progress: called with a stage and an item before each piece of work.
        float_weights: of the graphs before they were quantized, once the passes have run over the checkpoint.
        rounding: what rounding the activations changes in each graph, once the graphs have run with it and without.
    """

    bundle: Bundle
    registry: Registry
    progress: Callable[[str, str], None]
    float_weights: WeightStore | None = None
    rounding: dict[str, Comparison] = field(default_factory=dict)

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
        """The structural passes over the checkpoint, or None when its folder is not there.

        Raises:
            CheckpointError: it is damaged, or not what was converted.
        """
        try:
            if not located(self.recipe.model.checkpoint).exists():
                return None
        except (RecipeError, CheckpointError):  # its package is not installed; the hub's cache lacks it
            return None
        structural = [(e, p) for e, p in zip(self.recipe.passes, self.described.passes, strict=True) if p.structural]
        recipe = self.recipe.model_copy(update={"calibration": None, "passes": [e for e, _ in structural]})
        recipe = recipe.model_copy(update={"verify": self.described.recipe.verify})
        checked = check(recipe, self.registry, calibrated=True)
        converted: Mapping[str, str] = self.bundle.manifest["source"]["description"]
        found = digests(checked.source)
        for name in sorted({*converted, *found}):
            if converted.get(name) != found.get(name):
                raise CheckpointError(_other(recipe.model.checkpoint, name))
        return checked

    @cached_property
    def weights(self) -> WeightStore:
        """The checkpoint's weights; reading one that is not what was converted is an error."""
        if self.checkpoint is None:
            raise CheckpointError(f"{self.recipe.model.checkpoint}: missing")
        store, converted = self.checkpoint.source.weights(), self.bundle.manifest["source"]["weights"]
        return ConvertedWeights(store, converted, self.recipe.model.checkpoint)

    def check_converted(self, hashes: Mapping[str, str]) -> None:
        """As `check_converted`, of tensors that were read elsewhere."""
        check_converted(self.bundle.manifest["source"]["weights"], hashes, self.recipe.model.checkpoint)

    @cached_property
    def context(self) -> PassContext:
        """What the bundle brings to passes that run again."""
        return context_of(self.bundle)

    @property
    def gone(self) -> str:
        """Why a step that needs the checkpoint did not run."""
        return f"not run: the checkpoint {self.recipe.model.checkpoint} is gone"

    @cached_property
    def windows(self) -> list[list[int]]:
        """Held-out windows, each begun as the tokenizer begins texts; without a text, ids from all the vocabulary."""
        if windows := held_out(self.described):
            return windows
        begin = self.described.tokenizer.begin
        room = whole_runs(widest(self.bundle.graphs.values())) - len(begin)
        ids = spread_ids(self.described.config.vocabulary, range(8 * room))
        return [[*begin, *ids[i : i + room]] for i in range(0, len(ids), room)]

    @cached_property
    def unmeasured(self) -> str | None:
        """Why there is no perplexity of held-out text; None where there is."""
        if self.described.recipe.verify.text is None:
            return "not run: verify.text names no held-out text"
        graph = widest(self.bundle.graphs.values())
        if any(t.kind == "logits" and t.shape[1] == graph.ar for part in graph.parts for t in part.outputs):
            return None
        return f"not run: graph '{graph.name}' gives the last row of its logits alone"

    @cached_property
    def elements(self) -> int:
        """Of all weights of the bundle."""
        return sum(prod(entry["shape"]) for entry in BundleStore(self.bundle.folder).index.values())

    @cached_property
    def quantized(self) -> Model:
        """The recipe's graphs after all passes, over the bundle's encodings and its weights on their grids."""
        return remake(self.bundle, self.registry)

    def decoder(self, *runners: Runner) -> Decoder:
        """A decoder over some of the graphs."""
        return Decoder(runners, rope_table(self.bundle), adapter=adapter_table(self.bundle))

    def open(self, runtime: str, graph: str, bundle: Bundle | None = None) -> AbstractContextManager[list[Runner]]:
        """One graph of the bundle on a runtime; of the bundle as one of its chipsets has it, where that is given."""
        return self.runtime(runtime).open(bundle or self.bundle, [graph])

    def runtime(self, name: str) -> GraphRuntime:
        """A runtime by name.

        Raises:
            PluginError: no runtime has that name, or it gives no logits.
        """
        made = self.registry.create("runtime", name, {})
        if not isinstance(made, GraphRuntime):
            raise PluginError(f"runtime '{name}' writes text and gives no logits; it cannot be measured")
        return made
