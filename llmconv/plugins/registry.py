"""Finds plugins by entry point, each by itself, and makes what a recipe names."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import pluggy
from pydantic import TypeAdapter, ValidationError

from llmconv.errors import PluginError, RecipeError
from llmconv.naming import nearest
from llmconv.plugins import hooks as hookspecs
from llmconv.plugins.contract import lacks

if TYPE_CHECKING:
    from llmconv.lowering.lower import LoweringTable

GROUP = "llmconv"
Kind = Literal["pass", "source", "backend", "runtime", "exporter"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_HOOKS = {
    "pass": "register_passes",
    "source": "register_sources",
    "backend": "register_backends",
    "runtime": "register_runtimes",
    "exporter": "register_exporters",
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registered:
    """One plugin class and the distribution that brought it, e.g. "llmconv 0.1.0"."""

    name: str
    plugin: type
    distribution: str


@dataclass
class Registry:
    """All plugins that can be loaded, and those that cannot, with the reason.

    Attributes:
        modules: (distribution, hook module) of every plugin.
        broken: distribution and entry point -> why it cannot be loaded.
    """

    modules: list[tuple[str, Any]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Registry:
        """Load every entry point of the group `llmconv`; one that fails is a warning, and an error only when needed."""
        registry = cls()
        for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.dist.name if e.dist else "", e.name)):
            registry._load(entry)
        return registry

    @classmethod
    def load_only(cls, name: str) -> Registry:
        """Load the entry points of that name alone: a plugin that has its own is found without importing the others."""
        registry = cls()
        for entry in entry_points(group=GROUP):
            if entry.name == name:
                registry._load(entry)
        return registry

    @classmethod
    def of(cls, *modules: ModuleType | object) -> Registry:
        """A registry of given hook modules, without looking at what is installed."""
        registry = cls()
        for module in modules:
            registry.add(getattr(module, "__name__", type(module).__name__), module)
        return registry

    def add(self, distribution: str, module: Any) -> None:
        """Add one hook module.

        Raises:
            PluginError: it implements a hook that does not exist.
        """
        manager = _manager()
        manager.register(module)
        try:
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{distribution}: {error}") from error
        self.modules.append((distribution, module))

    @cached_property
    def passes(self) -> Mapping[str, Registered]:
        """Passes by name."""
        return self._collect("pass")

    @cached_property
    def sources(self) -> Mapping[str, Registered]:
        """Sources by name."""
        return self._collect("source")

    @cached_property
    def backends(self) -> Mapping[str, Registered]:
        """Backends by name."""
        return self._collect("backend")

    @cached_property
    def runtimes(self) -> Mapping[str, Registered]:
        """Runtimes by name."""
        return self._collect("runtime")

    @cached_property
    def exporters(self) -> Mapping[str, Registered]:
        """Exporters by name."""
        return self._collect("exporter")

    def of_kind(self, kind: Kind) -> Mapping[str, Registered]:
        """Plugins of one kind by name."""
        found: Mapping[str, Registered] = getattr(self, {"pass": "passes"}.get(kind, f"{kind}s"))
        return found

    @cached_property
    def lowerings(self) -> LoweringTable:
        """The function of each fx op, from all plugins.

        Raises:
            PluginError: two plugins lower the same op.
        """
        table: dict[Any, Any] = {}
        owner: dict[Any, str] = {}
        for distribution, module in self.modules:
            for op, function in self._call(distribution, module, "register_lowerings"):
                if op in table:
                    raise PluginError(f"op {op} is lowered by both {owner[op]} and {distribution}; uninstall one")
                table[op], owner[op] = function, distribution
        return table

    def find(self, kind: Kind, name: str) -> Any:
        """The class that a recipe names.

        Raises:
            PluginError: no plugin has that name.
        """
        known = self.of_kind(kind)
        if name in known:
            return known[name].plugin
        hint = nearest(name, known)
        broken = "".join(f"; plugin {where} cannot be loaded: {why}" for where, why in self.broken.items())
        raise PluginError(f"no {kind} named '{name}'{hint}{broken}")

    def create(self, kind: Kind, name: str, options: Mapping[str, Any]) -> Any:
        """An instance of a plugin class with validated options.

        Raises:
            PluginError: no plugin has that name.
            RecipeError: an option is unknown, missing, or of the wrong type.
        """
        plugin, where = self.find(kind, name), f"{kind} '{name}'"
        known = {f.name: f for f in fields(plugin)}
        hints = get_type_hints(plugin)
        for key in options:
            if key not in known:
                raise RecipeError(f"{where}: no option '{key}'{nearest(key, known)}")
        for key, entry in known.items():
            if key not in options and entry.default is MISSING and entry.default_factory is MISSING:
                raise RecipeError(f"{where}: option '{key}' is missing")
        values = {key: _validated(hints[key], value, f"{where}: option '{key}'") for key, value in options.items()}
        return plugin(**values)

    def _load(self, entry: EntryPoint) -> None:
        distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"
        try:
            self.add(distribution, entry.load())
        except Exception as error:  # a third party's module may raise anything
            self._break(f"{distribution} ({entry.name})", error)

    def _collect(self, kind: Kind) -> Mapping[str, Registered]:
        found: dict[str, Registered] = {}
        for distribution, module in self.modules:
            for plugin in self._call(distribution, module, _HOOKS[kind]):
                if lacking := lacks(plugin, kind):
                    self._break(distribution, PluginError(f"{kind} {getattr(plugin, '__name__', plugin)} {lacking}"))
                    continue
                name = plugin.name
                if name in found:
                    raise PluginError(
                        f"{kind} '{name}' comes from both {found[name].distribution} and {distribution}; uninstall one"
                    )
                found[name] = Registered(name, plugin, distribution)
        return found

    def _call(self, distribution: str, module: Any, hook: str) -> list[Any]:
        """What a module's hook gives, a table as pairs; nothing where it has none, or where it raises."""
        try:
            found: Any = getattr(module, hook, tuple)()
            return list(found.items() if isinstance(found, Mapping) else found)
        except Exception as error:  # as in `_load`
            self._break(f"{distribution} ({hook})", error)
            return []

    def _break(self, where: str, error: Exception) -> None:
        self.broken[where] = reason = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning("plugin %s cannot be loaded: %s", where, reason)


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def _validated(hint: Any, value: Any, where: str) -> Any:
    try:
        return TypeAdapter(hint).validate_json(json.dumps(value, default=str), strict=True)  # "2" and true are not 2
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f".{p}" for p in first["loc"] if isinstance(p, str) and p in str(value))
        raise RecipeError(f"{where}{place}: {first['msg'].lower()}, not {value!r}") from error


def option_schema(plugin: type) -> dict[str, Any]:
    """JSON Schemas of a plugin's options by name, and whether each is required."""
    hints = get_type_hints(plugin)
    return {f.name: TypeAdapter(hints[f.name]).json_schema() for f in fields(plugin) if not f.name.startswith("_")}


def required_options(plugin: type) -> Iterable[str]:
    """Names of the options without a default."""
    return [f.name for f in fields(plugin) if f.default is MISSING and f.default_factory is MISSING]
