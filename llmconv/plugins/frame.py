"""What is said when code of a plugin fails: whose it is, where, and why, in one line."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from llmconv.errors import LlmconvError, PluginError

ANYTHING = (Exception, SystemExit)  # that a third party's code may raise; but for what a user's Ctrl-C does


@contextmanager
def plugin_code(owner: object, doing: str) -> Iterator[None]:
    """Errors of a plugin's code inside become one line; those of llmconv's own tree pass, and name the distribution.

    Args:
        owner: the plugin's class, an instance of it, a function, or the name of its module.
        doing: what the plugin was asked for, e.g. "source 'llama', config".

    Raises:
        PluginError: names the distribution, what was asked, the line of the plugin's file, and the cause.
    """
    try:
        yield
    except LlmconvError as error:
        brought = third_party(owner)
        if brought and brought not in str(error):
            error.args = (f"{error} ({brought})",)
        raise
    except ANYTHING as error:
        raise PluginError(f"{doing} failed: {blame(owner, error)}") from error


class Framed:
    """Base of plugin classes: an error in a public method that a plugin defines says whose it is, and where."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if _module(cls).partition(".")[0] != "llmconv":
            for name, method in list(vars(cls).items()):
                if inspect.isfunction(method) and not name.startswith("_"):
                    setattr(cls, name, _framed(method))


def _framed(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        doing = f"{type(self).__name__}.{method.__name__}"
        with plugin_code(self, doing):
            made = method(self, *args, **kwargs)
        # by its bases: a path and an open file could be entered as well, and are what the caller asked for
        return _entered(self, doing, made) if AbstractContextManager in type(made).__mro__ else made

    return call


@contextmanager
def _entered(owner: object, doing: str, manager: AbstractContextManager[Any]) -> Iterator[Any]:
    """A context whose entering is the plugin's code; what happens inside is not."""
    with ExitStack() as stack:
        with plugin_code(owner, doing):
            value = stack.enter_context(manager)
        yield value


@functools.cache
def installed() -> Mapping[str, list[Distribution]]:
    """The distributions that bring a top-level package or module, by its name.

    As `importlib.metadata.packages_distributions` finds them, which takes five times as long: it makes a path of each
    file of all that is installed, and reads the names of distributions that nobody asks for.
    """
    found = defaultdict(list)
    for one in distributions():
        for package in (one.read_text("top_level.txt") or "").split() or _top_level(one):
            found[package].append(one)
    return dict(found)


def _top_level(one: Distribution) -> set[str]:
    """The packages and modules that a distribution has installed."""
    record = one.read_text("RECORD")
    files = [str(file) for file in one.files or ()] if record is None else record.splitlines()
    modules = (path.removesuffix(".py") for line in files if (path := line.partition(",")[0]).endswith(".py"))
    return {module.partition("/")[0] for module in modules}


Given = TypeVar("Given")


def given(owner: object, doing: str, value: object, kind: type[Given]) -> Given:
    """What a plugin's code gave, if it is of the kind that it is to be.

    Raises:
        PluginError: it is not; names what was asked and the distribution.
    """
    if isinstance(value, kind):
        return value
    by = ", ".join(filter(None, (_module(owner), distribution_of(owner))))
    raise PluginError(f"{doing} gave {type(value).__name__}, not {kind.__name__} ({by})")


def blame(owner: object, error: BaseException) -> str:
    """The cause's type and text, the line of the owner's code that it passed last, and the owner's distribution."""
    text = " ".join(str(error).split())
    cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{cause} ({', '.join(filter(None, (_line(owner, error.__traceback__), distribution_of(owner))))})"


def third_party(owner: object) -> str:
    """The distribution of a class or function that is not llmconv's own; else empty."""
    found = distribution_of(owner)
    return "" if found == distribution_of("llmconv") else found


def distribution_of(owner: object) -> str:
    """Name and version of the distribution that brought a class or function; empty for one that none did."""
    package = _module(owner).partition(".")[0]
    found = installed().get(package, ())
    return f"{found[0].name} {found[0].version}" if found else ""


def _line(owner: object, trace: TracebackType | None) -> str:
    frames = [(frame.f_globals.get("__name__", ""), frame.f_code.co_filename, line) for frame, line in _walk(trace)]
    package = _module(owner).partition(".")[0]
    own = [(file, line) for module, file, line in frames if module.partition(".")[0] == package]
    file, line = (own or [(file, line) for _, file, line in frames] or [("?", 0)])[-1]
    module = inspect.getmodule(type(owner)) if package == "__main__" else sys.modules.get(package)
    home = Path(getattr(module, "__file__", None) or "")
    root = home.parent.parent if home.name == "__init__.py" else home.parent
    return f"{Path(file).relative_to(root) if Path(file).is_relative_to(root) else file}:{line}"


def _walk(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_tb(trace)


def _module(owner: object) -> str:
    if isinstance(owner, str):
        return owner
    found = owner if isinstance(owner, type) or inspect.isroutine(owner) else type(owner)
    return getattr(found, "__module__", "") or ""
