"""Threads are switched sooner within a block, and as the embedding program wants it outside."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from llmconv.work.switching import SOON, threads_switched_soon


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)


def test_within_a_block_and_those_in_it() -> None:
    before = sys.getswitchinterval()
    with threads_switched_soon(), threads_switched_soon():
        assert sys.getswitchinterval() == pytest.approx(SOON)
    assert sys.getswitchinterval() == before
    with pytest.raises(KeyError), threads_switched_soon():
        raise KeyError
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize("chosen", [1e-4, 1e-2])
def test_what_the_program_chooses_meanwhile_stays(chosen: float) -> None:
    with threads_switched_soon():
        sys.setswitchinterval(chosen)
    assert sys.getswitchinterval() == pytest.approx(chosen, abs=2e-6)  # Python counts microseconds


def test_a_program_that_switches_sooner_goes_on_so() -> None:
    sys.setswitchinterval(1e-4)
    chosen = sys.getswitchinterval()
    with threads_switched_soon():
        assert sys.getswitchinterval() == chosen
