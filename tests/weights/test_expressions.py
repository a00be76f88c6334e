"""Weights as expressions over a store's tensors: equal whole and range by range, and no more is read than needed."""

from __future__ import annotations

import pytest
import torch

from llmconv import CheckpointError
from llmconv.weights import (
    Affine,
    Columns,
    Cut,
    Derived,
    DictStore,
    Expression,
    Halved,
    Held,
    Joined,
    LowRank,
    Rotated,
    Stored,
    StoreUnion,
)
from llmconv.weights.derived import tables_of

ROWS, COLUMNS, HEAD = 48, 16, 8


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int) -> torch.Tensor:
    return torch.linalg.qr(numbers(size, size))[0]


TENSORS = {
    "qkv": numbers(ROWS, COLUMNS),
    "bias": numbers(ROWS),
    "norm": 2 + numbers(COLUMNS).abs(),
    "top": numbers(12, COLUMNS, seed=1),
    "below": numbers(20, COLUMNS, seed=2),
    "left": numbers(8, 6),
    "right": numbers(8, 10),
    "q": orthogonal(HEAD),
    "wide": orthogonal(COLUMNS),
    "a": numbers(4, COLUMNS),
    "b": numbers(ROWS, 4),
}
QKV, NORM = Stored("qkv"), Stored("norm")


def halved(weight: torch.Tensor) -> torch.Tensor:
    """As transformers moves the rows of Meta's checkpoints."""
    return weight.reshape(-1, HEAD // 2, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


# kind -> expression, the weight in one piece, and the most rows of "qkv" that reading three rows may take
CASES: dict[str, tuple[Expression, torch.Tensor, int]] = {
    "stored": (QKV, TENSORS["qkv"], 3),
    "held": (Held(TENSORS["top"]), TENSORS["top"], 0),
    "cut": (Cut(QKV, 16, 32), TENSORS["qkv"][16:32], 3),
    "halved": (Halved(QKV, HEAD), halved(TENSORS["qkv"]), HEAD + 3),
    "halved bias": (Halved(Stored("bias"), HEAD), halved(TENSORS["bias"]), 0),
    "halved cut": (Halved(Cut(QKV, 16, 32), HEAD), halved(TENSORS["qkv"][16:32]), HEAD + 3),
    "affine": (Affine(QKV, 2.0, 1.0), TENSORS["qkv"] * 2 + 1, 3),
    "columns": (Columns(QKV, NORM), TENSORS["qkv"] * TENSORS["norm"], 3),
    "columns, divided": (Columns(QKV, NORM, divide=True), TENSORS["qkv"] / TENSORS["norm"], 3),
    "joined rows": (Joined((Stored("top"), Stored("below"))), torch.cat([TENSORS["top"], TENSORS["below"]]), 0),
    "joined columns": (
        Joined((Stored("left"), Stored("right")), 1),
        torch.cat([TENSORS["left"], TENSORS["right"]], 1),
        0,
    ),
    "rotated inputs": (Rotated(QKV, Stored("wide")), TENSORS["qkv"] @ TENSORS["wide"], 3),
    "rotated inputs, by heads": (
        Rotated(QKV, Stored("q")),
        TENSORS["qkv"] @ torch.block_diag(*[TENSORS["q"]] * (COLUMNS // HEAD)),
        3,
    ),
    "rotated outputs": (
        Rotated(QKV, Stored("q"), "out"),
        torch.block_diag(*[TENSORS["q"]] * (ROWS // HEAD)).T @ TENSORS["qkv"],
        2 * HEAD,
    ),
    "low rank": (LowRank(QKV, Stored("a"), Stored("b"), 0.5), TENSORS["qkv"] + 0.5 * TENSORS["b"] @ TENSORS["a"], 3),
}
each_kind = pytest.mark.parametrize("kind", CASES)


class Counted(DictStore):
    """Notes how many rows of each tensor are read."""

    def __init__(self) -> None:
        super().__init__(TENSORS)
        self.rows: dict[str, int] = {}

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        found = super().read(name, rows)
        self.rows[name] = self.rows.get(name, 0) + len(found)
        return found


@each_kind
def test_equal_whole_and_range_by_range(kind: str) -> None:
    expression, expected, _ = CASES[kind]
    store = Derived(DictStore(TENSORS), {"w": expression})
    assert store.shape("w") == tuple(expected.shape)
    torch.testing.assert_close(store.read("w"), expected)
    for start in range(0, len(expected), 3):
        torch.testing.assert_close(store.read("w", slice(start, start + 3)), expected[start : start + 3])
    for rows in (slice(5, 5), slice(-3, None), slice(2, 999)):
        torch.testing.assert_close(store.read("w", rows), expected[rows])


@each_kind
def test_three_rows_read_what_they_need(kind: str) -> None:
    expression, expected, most = CASES[kind]
    for start in range(0, len(expected) - 2, 3):
        counted = Counted()
        Derived(counted, {"w": expression}).read("w", slice(start, start + 3))
        assert counted.rows.get("qkv", 0) <= most


def test_joined_rows_are_read_from_those_that_hold_them() -> None:
    counted = Counted()
    store = Derived(counted, {"w": CASES["joined rows"][0]})
    store.read("w", slice(0, 3))
    assert counted.rows == {"top": 3}
    store.read("w", slice(11, 14))
    assert counted.rows == {"top": 4, "below": 2}


def test_joined_of_shapes_that_do_not_fit() -> None:
    store = Derived(DictStore(TENSORS), {"w": Joined((Stored("top"), Stored("left")))})
    with pytest.raises(CheckpointError, match=r"'left' has shape \[8, 6\], which does not fit \[12, 16\] of 'top'"):
        store.shape("w")


def test_other_names_are_read_as_they_are_and_a_changed_one_from_below() -> None:
    base = DictStore(TENSORS)
    twice = Derived(Derived(base, {"norm": Affine(NORM, 2.0)}), {"norm": Affine(NORM, 2.0)})
    assert torch.equal(twice.read("norm"), 4 * TENSORS["norm"])
    assert torch.equal(twice.read("qkv", slice(1, 3)), TENSORS["qkv"][1:3])
    assert twice.shape("bias") == (ROWS,)


def test_an_expression_is_a_key_and_a_line() -> None:
    expression = Halved(Cut(Stored("model.qkv_proj.weight"), 0, 4096), 128)
    assert str(expression) == "Halved(Cut(model.qkv_proj.weight, 0, 4096), 128, 0)"
    assert {expression: 1}[Halved(Cut(Stored("model.qkv_proj.weight"), 0, 4096), 128)] == 1
    assert str(CASES["joined columns"][0]) == "Joined((left, right), 1)"
    texts = [str(e) for e, _, _ in CASES.values()]
    assert len(set(texts)) == len(texts)


def test_values_in_memory_are_known_by_their_sha256() -> None:
    values = numbers(3)
    same, other = Held(values.clone()), Held(values + 1e-6)
    assert Columns(QKV, Held(values)) == Columns(QKV, same)
    assert hash(Held(values)) == hash(same)
    assert Columns(QKV, Held(values)) != Columns(QKV, other)
    assert str(Columns(QKV, Held(values))) != str(Columns(QKV, other))


def test_tables_are_a_steps_key() -> None:
    base = DictStore(TENSORS)
    assert tables_of(base) == []
    first = Derived(base, {"w": Columns(QKV, NORM)})
    assert tables_of(Derived(first, {"v": Affine(Stored("w"), 2.0)})) == [
        {"v": "Affine(w, 2.0, 0.0)"},
        {"w": "Columns(qkv, norm, False)"},
    ]


class Hashed(DictStore):
    """Whose tensors have a hash when their names are short."""

    def sha256(self, name: str) -> str | None:
        return f"<{name}>" if len(name) < 5 else None


def test_hashes_are_those_of_what_a_weight_is_made_of() -> None:
    table = {name: CASES[name][0] for name in ("cut", "joined rows", "low rank", "held")}
    store = Derived(Hashed(TENSORS), table)
    assert store.sha256("cut") == "<qkv>"
    assert store.sha256("low rank") == "<qkv> <a> <b>"
    assert store.sha256("joined rows") is None  # "below" has none
    assert store.sha256("held") is None
    assert store.sha256("norm") == "<norm>"


def test_several_stores_are_one() -> None:
    store = StoreUnion({"base": Hashed(TENSORS), "adapter": DictStore({"model/a": numbers(2)})})
    assert store.shape("base/qkv") == (ROWS, COLUMNS)
    assert torch.equal(store.read("base/qkv", slice(1, 2)), TENSORS["qkv"][1:2])
    assert torch.equal(store.read("adapter/model/a"), numbers(2))
    assert (store.sha256("base/qkv"), store.sha256("adapter/model/a")) == ("<qkv>", None)
