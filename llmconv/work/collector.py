"""What this process's garbage collector is told while graphs are made; it is then as the embedding program left it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from llmconv.work.process_change import ProcessChange, Undo, nothing

MANY = 200_000  # objects; fewer are walked in some milliseconds


def _pause() -> Undo:
    if not gc.isenabled():
        return nothing
    gc.disable()

    def undo() -> None:
        # else what is frozen would be unfrozen; to count a million of it takes 50 ms
        if gc.get_count()[0] > MANY and not _spared.active and not gc.get_freeze_count():
            gc.freeze()  # and with the next line all of it is old, which else were walked first of all
            gc.unfreeze()
        gc.enable()

    return undo


def _spare() -> Undo:
    thresholds = gc.get_threshold()
    raised = (100 * thresholds[0], *thresholds[1:])  # what is made meanwhile mostly stays, too
    gc.set_threshold(*raised)
    ours = not gc.get_freeze_count()  # else the program's own objects could not be told from ours, to unfreeze
    if ours:
        gc.freeze()

    def undo() -> None:
        if gc.get_threshold() == raised:
            gc.set_threshold(*thresholds)
        if ours:
            gc.unfreeze()

    return undo


_paused, _spared = ProcessChange(_pause), ProcessChange(_spare)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector, which else walks all of a growing graph again and again (a quarter of the time).

    Not for code that runs a graph on numbers: tensors in cycles would stay.
    """
    with _paused():
        yield


@contextmanager
def collector_spared() -> Iterator[None]:
    """Keep the garbage collector from walking what is there now, and seldom have it walk what is made meanwhile.

    For a whole conversion or proof: what imports leave, 300,000 objects, is not garbage; walking it was a quarter of
    the time of a tiny model's; of 7B, graphs are a million, and walking them again and again a third of calibration.
    """
    with _spared():
        yield
