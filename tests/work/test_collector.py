"""The garbage collector is as the embedding program left it, also after two runs at once."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from llmconv.work import collector_paused, collector_spared, give_back_memory

State = tuple[bool, tuple[int, int, int], int]
BLOCKS = [collector_paused, collector_spared]
Block = Callable[[], AbstractContextManager[None]]


def state() -> State:
    return gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()


@pytest.fixture(autouse=True)
def _as_before(thawed: None) -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.enable()


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_changes_the_collector_and_leaves_it_as_it_was(block: Block) -> None:
    before = state()
    with block(), block():
        assert state() != before
    assert state() == before
    with pytest.raises(KeyError), block():
        raise KeyError
    assert state() == before


@pytest.mark.parametrize("block", BLOCKS)
def test_two_threads_do_not_disturb_each_other(block: Block) -> None:
    before, inside, leave = state(), threading.Event(), threading.Event()

    def other() -> None:
        with block():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    with block():
        thread.start()
        assert inside.wait(20)
    assert state()[:2] != before[:2]  # this one has left, the other has not
    leave.set()
    thread.join()
    assert state() == before


@pytest.mark.parametrize("block", BLOCKS)
def test_what_the_program_has_set_stays(block: Block) -> None:
    gc.set_threshold(123, 4, 5)
    gc.freeze()
    gc.disable()
    frozen = gc.get_freeze_count()
    with block():
        give_back_memory()
    give_back_memory()
    assert state()[:2] == (False, (123, 4, 5))
    assert gc.get_freeze_count() > 0.9 * frozen  # some of it goes out of use by itself


class Node:
    """Something in a cycle."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_there_before_is_not_walked_and_what_is_made_meanwhile_is_given_back() -> None:
    before = Node()
    old = weakref.ref(before)
    with collector_spared():
        meanwhile = Node()
        new = weakref.ref(meanwhile)
        del before, meanwhile
        give_back_memory()
        assert new() is None
        assert old() is not None
    gc.collect()
    assert old() is None


def test_what_is_made_while_the_collector_rests_is_not_walked_as_new_after_it() -> None:
    with collector_paused():
        made = [[i] for i in range(300_000)]
    assert len(gc.get_objects(generation=0)) < len(made)
    assert any(found is made for found in gc.get_objects(generation=2))
