"""What this process's garbage collector is told while graphs are made; it is then as the embedding program left it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Undo = Callable[[], None]


class _Shared:
    """A change to the process that begins with the first block that asks for it, in any thread, and ends with the last.

    Args:
        change: makes it, and returns what undoes it.
    """

    def __init__(self, change: Callable[[], Undo]) -> None:
        self.lock = threading.RLock()
        self._change, self._blocks, self._undo = change, 0, _nothing

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if not self._blocks:
                self._undo = self._change()
            self._blocks += 1
        try:
            yield
        finally:
            with self.lock:
                self._blocks -= 1
                if not self._blocks:
                    self._undo()


def _nothing() -> None:
    pass


def _pause() -> Undo:
    if not gc.isenabled():
        return _nothing
    gc.disable()
    return gc.enable


_frozen_here = False  # whether all that is frozen was frozen below


def _spare() -> Undo:
    global _frozen_here  # noqa: PLW0603  the collector is one for the process, and so is what is known of it
    thresholds = gc.get_threshold()
    raised = (100 * thresholds[0], *thresholds[1:])  # what is made meanwhile mostly stays, too
    gc.set_threshold(*raised)
    if not gc.get_freeze_count():  # else the program's own objects could not be told from ours, to unfreeze
        gc.freeze()
        _frozen_here = True

    def undo() -> None:
        global _frozen_here  # noqa: PLW0603  as above
        if gc.get_threshold() == raised:
            gc.set_threshold(*thresholds)
        if _frozen_here:
            gc.unfreeze()
            _frozen_here = False

    return undo


_paused, _spared = _Shared(_pause), _Shared(_spare)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector, which else walks all of a growing graph again and again (a quarter of the time).

    Not for code that runs a graph on numbers: tensors in cycles would stay.
    """
    with _paused():
        yield


@contextmanager
def collector_spared() -> Iterator[None]:
    """Keep the garbage collector from walking the graphs that are there, while work that leaves them be makes garbage.

    Of 7B, they are a million objects: walking them again and again took a third of calibration and of lowering.
    """
    with _spared():
        yield


def collect() -> None:
    """Collect all garbage, also among what `collector_spared` froze."""
    with _spared.lock:
        if _frozen_here:
            gc.unfreeze()
        gc.collect()
        if _frozen_here:
            gc.freeze()
