"""What a low-rank change of a checkpoint's tensors becomes in the weights that are made of these tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from llmconv.errors import PassError
from llmconv.weights.derived import Derived, DerivedCheckpoint
from llmconv.weights.expressions import Affine, Columns, Cut, Expression, Halved, Held, Rotated, Rows, Stored
from llmconv.weights.store import WeightStore

Factors = tuple[Tensor, Tensor]  # a (rank, columns) and b (rows, rank): the tensor changes by b @ a
LowRankChanges = Mapping[str, Factors]  # by the checkpoint's name of the tensor


def low_rank_change(store: WeightStore, name: str, changes: LowRankChanges) -> Factors | None:
    """How a weight changes with the checkpoint's tensors, through all that passes have made of it; None where it stays.

    Raises:
        PassError: the weight is made of them in a way that leaves no change of low rank.
    """
    if not isinstance(store, Derived) or isinstance(store, DerivedCheckpoint):  # the checkpoint, as its source has it
        return changes.get(name)
    if name not in store.table:
        return low_rank_change(store.store, name, changes)
    return _through(store.table[name], store.store, name, changes)


def _through(x: Expression, store: WeightStore, weight: str, changes: LowRankChanges) -> Factors | None:
    if isinstance(x, Stored):
        return low_rank_change(store, x.name, changes)
    if all(low_rank_change(store, name, changes) is None for name in x.stored()):
        return None
    on_rows = isinstance(x, Cut | Halved | Rows) or (isinstance(x, Rotated) and x.side == "out")
    on_columns = isinstance(x, Columns) or (isinstance(x, Rotated) and x.side == "in")
    scaled = isinstance(x, Affine) and not x.shift
    if not (on_rows or on_columns or scaled):
        raise PassError(f"weight '{weight}' is {x}, in which an adapter is no change of low rank; merge the adapter")
    assert isinstance(x, Affine | Columns | Cut | Halved | Rotated | Rows)
    inner = _through(x.x, store, weight, changes)
    if inner is None:
        return None
    a, b = inner
    if on_columns:
        return replace(x, x=Held(a)).rows(store, 0, len(a)), b
    over = replace(x, x=Held(b))
    return a, over.rows(store, 0, over.shape(store)[0])
