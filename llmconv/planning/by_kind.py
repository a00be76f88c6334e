"""The sizes of parts from a few layers of each kind: layers of a kind differ in nothing but their place.

Two of a kind tell what belongs to each layer and what all share, such as the mask's slices.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import accumulate, pairwise

from llmconv.graph.model import Model
from llmconv.graph.sizes import Contents, Item, PartSize, contents_of, size_of
from llmconv.passes.base import Pass, SplitPass
from llmconv.prepare.resolve import Checked
from llmconv.prepare.trace import lay_out
from llmconv.sources.repeating import Repeating


def sizes_by_kind(checked: Checked) -> tuple[Model, list[PartSize]] | None:
    """The recipe's parts as `part_sizes` finds them, and the model of few layers that they were found from.

    Returns:
        None where not every pass says by which options it goes by a layer's place, where such an option is set, or
        where too few layers are alike.

    Raises:
        LlmconvError: that model cannot be laid out, whatever becomes of the whole one.
    """
    splitting = [p for p in checked.passes if isinstance(p, SplitPass)]
    if len(splitting) != 1 or any(map(_by_place, checked.passes)):
        return None
    module = checked.source.module()
    if not isinstance(module, Repeating):
        return None
    kinds = list(module.kinds)
    chosen = _some_of_each(kinds)
    if 2 * len(chosen) > len(kinds):
        return None
    module.keep(chosen)
    alone: list[Pass] = [p.layer_by_layer(len(chosen)) if isinstance(p, SplitPass) else p for p in checked.passes]
    few = replace(checked, passes=alone, config=replace(checked.config, layers=len(chosen)))
    model, widths = lay_out(few, module)
    graphs = list(model.graphs.values())
    laid_out = {layer: contents_of(graphs, i, widths) for i, layer in enumerate(chosen)}
    layers = _all_layers(laid_out, kinds)
    lengths = splitting[0].lengths(_weight_bytes(layers))
    ends = [0, *accumulate(lengths)]
    joined = [_joined(layers[start:end]) for start, end in pairwise(ends)]
    return model, [size_of(contents, graphs, i, len(joined)) for i, contents in enumerate(joined)]


def _by_place(p: Pass) -> bool:
    """Whether a pass may treat layers that are alike differently; what a class says is not said of those under it."""
    options: tuple[str, ...] | None = vars(type(p)).get("by_place")
    return options is None or any(getattr(p, option) for option in options)


def _some_of_each(kinds: Sequence[Hashable]) -> list[int]:
    """The first layer, the last, and two of each kind between them, if there are so many."""
    between: dict[Hashable, list[int]] = {}
    for i in range(1, len(kinds) - 1):
        between.setdefault(kinds[i], []).append(i)
    return sorted({0, len(kinds) - 1, *(i for places in between.values() for i in places[:2])})


def _all_layers(laid_out: dict[int, Contents], kinds: Sequence[Hashable]) -> list[Contents]:
    """The contents of each layer: as laid out, or those of its kind, with what is not shared under its own place."""
    between = {i: kinds[i] for i in laid_out if 0 < i < len(kinds) - 1}
    layers = []
    for i, kind in enumerate(kinds):
        if i in laid_out:
            layers.append(laid_out[i])
            continue
        like, other = (laid_out[j] for j, its in between.items() if its == kind)
        layers.append({(item if item in other else item._replace(place=i)): held for item, held in like.items()})
    return layers


def _weight_bytes(layers: Sequence[Contents]) -> list[int]:
    """Of each layer; what several use counts to the first."""
    seen: set[Item] = set()
    found = []
    for layer in layers:
        new = {item: held.bytes for item, held in layer.items() if item.what == "weight" and item not in seen}
        seen |= new.keys()
        found.append(sum(new.values()))
    return found


def _joined(layers: Sequence[Contents]) -> Contents:
    """Of neighbours as one part, which pass what lies between them to each other."""
    inner = [
        {
            item: held
            for item, held in layer.items()
            if not (held.io is not None and held.io.kind == "hidden")
            or (item.what == "input" and i == 0)
            or (item.what == "output" and i == len(layers) - 1)
        }
        for i, layer in enumerate(layers)
    ]
    return reduce(_both, inner)


def _both(one: Contents, other: Contents) -> Contents:
    """What either holds; a weight that both use is a table only where both look it up."""
    common = {
        item: held._replace(table=held.table and other[item].table, head=held.head or other[item].head)
        for item, held in one.items()
        if item in other
    }
    return one | other | common
