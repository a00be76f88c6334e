"""A low-rank change of a checkpoint's tensors in the weights made of them: as the weights of a changed checkpoint."""

from __future__ import annotations

import pytest
import torch

from llmconv import PassError
from llmconv.weights import (
    Affine,
    Columns,
    Cut,
    Derived,
    DerivedCheckpoint,
    DictStore,
    Expression,
    Halved,
    Held,
    Joined,
    Rotated,
    RowLengths,
    Rows,
    Stored,
    low_rank_change,
)

ROWS, COLUMNS, RANK = 24, 16, 3


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


W, A, B = drawn(ROWS, COLUMNS), drawn(RANK, COLUMNS, seed=1), drawn(ROWS, RANK, seed=2)
CHANGES = {"w": (A, B)}
X, QUARTER = Stored("w"), Held(torch.linalg.qr(drawn(4, 4, seed=3))[0])
WHOLE = Held(torch.linalg.qr(drawn(COLUMNS, COLUMNS, seed=4))[0])

KEPT: dict[str, Expression] = {
    "as it is": X,
    "rows of a fused one": Cut(X, 8, 16),
    "halves": Halved(X, 8),
    "halves of rows": Halved(Cut(X, 8, 24), 8, 4),
    "scaled": Affine(X, 0.5),
    "columns": Columns(X, Held(drawn(COLUMNS, seed=5))),
    "rows divided": Rows(X, Held(2 + drawn(ROWS, seed=6).abs()), divide=True),
    "turned inputs": Rotated(X, WHOLE, "in"),
    "turned outputs": Rotated(X, QUARTER, "out", 2),
    "all of it": Rotated(Columns(Rotated(Rows(X, Held(drawn(ROWS))), QUARTER, "out"), Held(drawn(COLUMNS))), WHOLE),
}


@pytest.mark.parametrize("kind", KEPT)
def test_a_weight_changes_by_the_product_of_what_its_factors_become(kind: str) -> None:
    def weight(tensor: torch.Tensor) -> torch.Tensor:
        return Derived(DictStore({"w": tensor}), {"made": KEPT[kind]}).read("made")

    change = low_rank_change(Derived(DictStore({"w": W}), {"made": KEPT[kind]}), "made", CHANGES)
    assert change is not None
    assert len(change[0]) == RANK
    torch.testing.assert_close(change[1] @ change[0], weight(W + B @ A) - weight(W), rtol=1e-4, atol=1e-4)


def test_tables_on_top_of_each_other_and_names_that_are_used_twice() -> None:
    """A pass's table over a source's over a checkpoint, whose own table is below what an adapter changes."""
    checkpoint = DerivedCheckpoint(DictStore({"w": W, "v": W}), {"w": Affine(Stored("v"), 2.0)})
    source = Derived(checkpoint, {"layers.0": Stored("w"), "other": Stored("v")})
    passed = Derived(source, {"layers.0": Rows(Stored("layers.0"), Held(torch.full((ROWS,), 3.0)))})
    a, b = low_rank_change(passed, "layers.0", CHANGES) or (torch.empty(0), torch.empty(0))
    torch.testing.assert_close(b @ a, 3 * (B @ A))
    assert low_rank_change(passed, "other", CHANGES) is None


@pytest.mark.parametrize("x", [Joined((X, X)), RowLengths(X, Held(torch.ones(ROWS))), Affine(X, 1.0, 1.0)])
def test_what_leaves_no_product_is_refused(x: Expression) -> None:
    store = Derived(DictStore({"w": W}), {"made": x})
    with pytest.raises(PassError, match=r"weight 'made' is .*; merge the adapter"):
        low_rank_change(store, "made", CHANGES)
    assert low_rank_change(store, "made", {"another": (A, B)}) is None
