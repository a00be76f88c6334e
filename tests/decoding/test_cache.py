"""One buffer a slot: what is written stays where it is, until a graph of another length reads."""

from __future__ import annotations

import numpy as np
import pytest

from llmconv.decoding.cache import Slot

LONG, SHORT = (2, 1, 7), (2, 1, 4)  # positions on the last axis


def new(*values: int) -> np.ndarray:
    """Both heads alike."""
    return np.array([[values], [values]], np.uint8)


def slot() -> Slot:
    return Slot(2, "uint8", 128, room=7)


def rows(found: np.ndarray) -> list[int]:
    assert (found[0] == found[1]).all()
    return found[0, 0].tolist()


def test_nothing_is_cached_yet() -> None:
    assert rows(slot().past(SHORT, 0)) == [128] * 4


def test_a_graph_that_reads_on_is_given_the_same_buffer() -> None:
    made = slot()
    buffer = made.past(LONG, 0)
    for i, value in enumerate((5, 6, 7)):
        made.write(new(value), 1, i)
        assert made.past(LONG, i + 1) is buffer
    assert rows(buffer) == [5, 6, 7, 128, 128, 128, 128]
    assert buffer.flags["C_CONTIGUOUS"]  # runtimes take it without a copy


def test_padding_is_left_out() -> None:
    made = slot()
    made.write(new(5, 6, 7), 2, 0)
    assert rows(made.past(LONG, 2)) == [5, 6, 128, 128, 128, 128, 128]


def test_graphs_of_two_lengths_read_the_same() -> None:
    made = slot()
    made.write(new(5, 6), 2, 0)
    assert rows(made.past(SHORT, 2)) == [5, 6, 128, 128]
    made.write(new(7, 8, 9), 3, 2)  # more than the short one holds
    assert rows(made.past(LONG, 5)) == [5, 6, 7, 8, 9, 128, 128]


def test_what_no_graph_reads_is_not_cached() -> None:
    made = slot()
    made.write(new(1, 2, 3, 4, 5, 6, 7, 8), 8, 0)
    assert rows(made.past(LONG, 7)) == [1, 2, 3, 4, 5, 6, 7]
    made.write(new(9), 1, 8)
    assert rows(made.past(LONG, 7)) == [1, 2, 3, 4, 5, 6, 7]


def test_reset_forgets() -> None:
    made = slot()
    made.write(new(5), 1, 0)
    made.reset()
    assert rows(made.past(SHORT, 0)) == [128] * 4


def test_floats_are_no_integers() -> None:
    with pytest.raises(TypeError, match="Cannot cast"):
        slot().write(np.ones((2, 1, 1), np.float32), 1, 0)
