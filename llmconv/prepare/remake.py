"""A bundle's graphs once more as fx, from the bundle alone: its recipe, its small files, its encodings and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llmconv.bundle.bundle import CHOSEN, EVALUATION, SOURCE, Bundle
from llmconv.bundle.weights import BundleStore, read_encodings
from llmconv.encodings.value import Encoding, Encodings
from llmconv.errors import BundleError, PassError
from llmconv.graph.model import Model, inputs_of, io_of, name_of, outputs_of
from llmconv.passes.context import PassContext
from llmconv.passes.manager import PassManager
from llmconv.plugins.registry import Registry
from llmconv.prepare.resolve import Checked, check
from llmconv.prepare.trace import trace_graphs
from llmconv.quantization.sharing import sharing_groups
from llmconv.recipe.recipe import Recipe
from llmconv.weights.store import ShapeStore


def recipe_of(bundle: Bundle) -> Recipe:
    """The recipe as it was applied."""
    return Recipe.from_dict(bundle.manifest["recipe"], str(bundle.folder))


def described(bundle: Bundle, registry: Registry) -> Checked:
    """The recipe over the bundle's own copy of the checkpoint's small files; weights are not to be had from it."""
    return _over(recipe_of(bundle), bundle, registry)


def context_of(bundle: Bundle) -> PassContext:
    """What a bundle brings to passes that run again: what they have chosen on calibration text, and none of that.

    Raises:
        BundleError: it is missing or damaged.
    """
    if CHOSEN not in bundle.manifest["files"]:
        return PassContext()
    try:
        return PassContext(chosen=load_file(bundle.path(CHOSEN)))
    except SafetensorError as error:
        raise BundleError(f"{bundle.folder / CHOSEN}: damaged; convert again") from error


def remake(
    bundle: Bundle, registry: Registry | None = None, changes: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> Model:
    """A bundle's graphs after all its passes, some with other options, over the bundle's weights and encodings.

    `TorchRunner(graph, model.weights, model.encodings)` runs one as the bundle's files say, in float.

    What the passes say of weights is left aside: the bundle's own are what came of it.

    Values that only the changed graphs have take the encoding of what they are moved from or to; what is moved to or
    from the cache takes the cache's.

    Args:
        changes: pass name -> options instead of the recipe's.

    Raises:
        BundleError: a file that this needs is missing or damaged.
        PassError: the bundle has no such pass, or no encoding for a value of the changed graphs.
    """
    recipe = recipe_of(bundle)
    for name in changes:
        if name not in [entry.name for entry in recipe.passes]:
            raise PassError(f"{bundle.folder}: its recipe has no pass '{name}'")
    entries = [e.model_copy(update=dict(changes.get(e.name, {}))) for e in recipe.passes]
    checked = _over(recipe.model_copy(update={"passes": entries}), bundle, registry or Registry.load())
    weights = BundleStore(bundle.folder)
    model = trace_graphs(checked, _SourcesShapes(weights, ShapeStore(checked.source.module())))
    known = read_encodings(bundle.folder)
    model.encodings = known if known.values else None
    PassManager(checked.passes).run(model, context_of(bundle))
    model.weights = weights
    if model.encodings is not None:
        model.encodings = Encodings(_spread(model, bundle, known.values))
    return model


@dataclass(frozen=True)
class _SourcesShapes:
    """A bundle's weights while its passes run once more over what they have made: shapes are the source's.

    A bundle has no tensor that a pass has put into another one.
    """

    bundle: BundleStore
    source: ShapeStore

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self.bundle.read(name, rows)

    def sha256(self, name: str) -> str | None:
        return self.bundle.sha256(name)


def require_plugins(bundle: Bundle) -> None:
    """Whether the distributions whose plugins made a bundle are installed.

    Raises:
        BundleError: names the first that is not.
    """
    for name, made_by in bundle.manifest.get("plugins", {}).items():
        try:
            version(name)
        except PackageNotFoundError:
            message = f"{bundle.folder}: made with {name} {made_by}, which is not installed; pip install {name}"
            raise BundleError(message) from None


def _over(recipe: Recipe, bundle: Bundle, registry: Registry) -> Checked:
    require_plugins(bundle)
    text = bundle.folder / EVALUATION
    update = {
        "model": recipe.model.model_copy(update={"checkpoint": bundle.folder / SOURCE}),
        "verify": recipe.verify.model_copy(update={"text": text if text.is_file() else None}),
        "calibration": None,
    }
    return check(recipe.model_copy(update=update), registry, calibrated=True)


def _spread(model: Model, bundle: Bundle, known: Mapping[str, Encoding]) -> dict[str, Encoding]:
    cache = {
        (t.kind.rpartition("_")[2], t.layer): t.encoding
        for graph in bundle.graphs.values()
        for part in graph.parts
        for t in (*part.inputs, *part.outputs)
        if t.layer is not None and t.encoding is not None
    }
    cached: dict[str, Encoding] = {}
    for part in (part for graph in model.graphs.values() for part in graph.parts):
        nodes, (ins, outs) = inputs_of(part) | outputs_of(part), io_of(part)
        for name, io in (ins | outs).items():
            if io.layer is not None:
                cached[name_of(nodes[name])] = cache[io.kind.rpartition("_")[2], io.layer]
    found: dict[str, Encoding] = {}
    for group in sharing_groups(model.graphs.values()):
        given = [cached[n] for n in group if n in cached] or [known[n] for n in group if n in known]
        if not given:
            raise PassError(f"{bundle.folder}: has no encoding for value '{group[0]}'; convert again")
        found |= dict.fromkeys(group, given[0])
    return found
