"""Weights that stay in memory as far as a limit allows."""

from __future__ import annotations

import pytest
import torch

from llmconv.weights import DictStore, HeldStore, held


class Counted(DictStore):
    reads = 0

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        self.reads += 1
        return super().read(name, rows).clone()


def test_what_fits_is_read_once() -> None:
    store = Counted({"a": torch.ones(4), "b": torch.ones(8), "c": torch.ones(2)})
    held = HeldStore(store, limit=4 * 7)  # a and c, and not b between them
    for _ in range(3):
        for name in "abc":
            assert torch.equal(held.read(name), store.tensors[name])
    assert store.reads == 2 + 3
    assert torch.equal(held.read("a", slice(1, 3)), torch.ones(2))
    assert store.reads == 2 + 3


def test_rows_alone_are_not_held() -> None:
    store = Counted({"a": torch.arange(4.0)})
    held = HeldStore(store)
    assert [held.read("a", slice(1, 2)).item() for _ in range(2)] == [1.0, 1.0]
    assert store.reads == 2
    assert held.shape("a") == (4,)
    assert held.sha256("a") is None


def test_the_heap_is_trimmed_as_weights_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(held, "trim", lambda: trims.append(1))
    monkeypatch.setattr(held, "TRIMMED", 20)
    store = HeldStore(DictStore({name: torch.ones(4) for name in "abcd"}))
    for name in "abcdabcd":
        store.read(name)
    assert len(trims) == 2  # after b and after d


def test_it_knows_what_lies_in_what_it_holds() -> None:
    store = HeldStore(DictStore({"a": torch.ones(4, 2), "b": torch.ones(8)}), limit=32)
    a, b = store.read("a"), store.read("b")
    assert store.holds(a)
    assert store.holds(a[2:].unsqueeze(0))
    assert store.holds(store.read("a", slice(1, 3)))
    assert not store.holds(b)
    assert not store.holds(a.clone())
