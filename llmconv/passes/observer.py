"""What watches a conversion: a plugin that is told of each pass and step, and changes nothing."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from llmconv.errors import PluginError
from llmconv.graph.model import Model
from llmconv.passes.contract import Snapshot
from llmconv.plugins.frame import blame, plugin_code


class Observer(ABC):  # noqa: B024  whoever watches need not watch everything
    """Told of what happens; a subclass overrides what it wants to hear of. One instance watches one conversion."""

    def step(self, stage: str, item: str) -> None:  # noqa: B027  as above
        """A piece of work begins, e.g. `lower`, `token_ar1_cl128_1_of_2`."""

    def after_step(self, stage: str, item: str) -> None:  # noqa: B027  as above
        """A piece of work that `step` told of is behind: another begins, or the conversion ends."""

    def before_pass(self, name: str, model: Model) -> None:  # noqa: B027  as above
        """A pass is about to run; the model is for looking at."""

    def after_pass(self, name: str, model: Model) -> None:  # noqa: B027  as above
        """A pass has run, and what it left has been checked."""


class Observers:
    """Tells several; what one of them changes or raises is an error that names it."""

    def __init__(self, watching: Sequence[Observer] = ()) -> None:
        self._watching = list(watching)
        self._under_way: tuple[str, str] | None = None

    def step(self, stage: str, item: str) -> None:
        """A piece of work begins, so that the one before it is behind."""
        self.done()
        self._under_way = stage, item
        self._tell([one.step for one in self._watching], stage, item)

    def done(self) -> None:
        """What was under way is behind."""
        if self._under_way is not None:
            self._tell([one.after_step for one in self._watching], *self._under_way)
        self._under_way = None

    def _tell(self, calls: Sequence[Callable[[str, str], None]], stage: str, item: str) -> None:
        for call in calls:
            one = call.__self__  # type: ignore[attr-defined]
            with plugin_code(one, f"observer {type(one).__name__}"):
                call(stage, item)

    @contextmanager
    def of_pass(self, name: str, model: Model) -> Iterator[None]:
        """Around a pass."""
        self._show([one.before_pass for one in self._watching], name, model)
        yield
        self._show([one.after_pass for one in self._watching], name, model)

    def _show(self, calls: Sequence[Callable[[str, Model], None]], name: str, model: Model) -> None:
        for call in calls:
            before = Snapshot.of(model)
            one = call.__self__  # type: ignore[attr-defined]
            with plugin_code(one, f"observer {type(one).__name__}"):
                call(name, model)
            if where := before.difference(Snapshot.of(model)):
                wrong = RuntimeError(f"changed {where}")
                raise PluginError(f"observer {type(one).__name__} may look, but {blame(one, wrong)}")
