"""Weights read before they are asked for, as many as memory is meant to hold."""

from __future__ import annotations

import threading

import pytest
import torch

from llmconv import CheckpointError
from llmconv.weights import DictStore
from llmconv.weights.read_ahead import ReadAhead

AHEAD = 2  # weights in memory beside the one in use: what a conversion of 7B has room for
NAMES = ["a", "b", "c", "d", "e"]
SECONDS = 20  # in which another thread gets its turn, however busy the machine


class Watched(DictStore):
    """Says when a weight has been read."""

    def __init__(self) -> None:
        super().__init__({name: torch.full((2, 2), float(i)) for i, name in enumerate(NAMES)})
        self.done = {name: threading.Event() for name in NAMES}

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        weight = super().read(name, rows)
        self.done[name].set()
        return weight


def test_the_next_weights_are_read_while_one_is_in_use_and_no_more() -> None:
    store = Watched()
    with ReadAhead(store, NAMES) as ahead:
        for i, name in enumerate(NAMES):
            assert torch.equal(ahead.read(name), store.tensors[name])
            for following in NAMES[i + 1 : i + 1 + AHEAD]:
                assert store.done[following].wait(SECONDS)
            for later in NAMES[i + 1 + AHEAD :]:
                assert not store.done[later].wait(0.05)


def test_another_order_and_ranges_of_rows_are_read_when_asked() -> None:
    store = Watched()
    with ReadAhead(store, NAMES) as ahead:
        assert torch.equal(ahead.read("e"), store.tensors["e"])
        assert torch.equal(ahead.read("a", slice(0, 1)), store.tensors["a"][:1])
        assert torch.equal(ahead.read("a"), store.tensors["a"])


def test_a_name_that_is_left_out_is_not_held_and_the_reader_goes_on() -> None:
    store = Watched()
    with ReadAhead(store, NAMES) as ahead:
        assert torch.equal(ahead.read("c"), store.tensors["c"])  # neither a nor b
        assert store.done["d"].wait(SECONDS)
        assert store.done["e"].wait(SECONDS)
        assert torch.equal(ahead.read("a"), store.tensors["a"])  # late, at once
        store.tensors = {}
        assert float(ahead.read("d")[0, 0]) == NAMES.index("d")  # as read ahead


def test_an_error_is_raised_where_its_weight_is_asked_for() -> None:
    class Damaged(Watched):
        def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
            if name == "b":
                raise CheckpointError("b: truncated")
            return super().read(name, rows)

    with ReadAhead(Damaged(), NAMES) as ahead:
        ahead.read("a")
        with pytest.raises(CheckpointError, match="b: truncated"):
            ahead.read("b")
        ahead.read("c")
