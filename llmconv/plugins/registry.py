"""Finds plugins by entry point, each by itself, and makes what a recipe names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import pluggy

from llmconv.errors import PluginError
from llmconv.naming import nearest
from llmconv.plugins import hooks
from llmconv.plugins.api import check_api
from llmconv.plugins.choice import chosen_of, require_known
from llmconv.plugins.contract import lacks
from llmconv.plugins.frame import ANYTHING, plugin_code
from llmconv.plugins.local_file import module_of_file
from llmconv.plugins.options import validated
from llmconv.plugins.results import CHECKUPS, CHIPSETS, FAMILIES, LOWERINGS, OBSERVERS, RECIPES, checked
from llmconv.plugins.selection import selected
from llmconv.target import Chipset, find

if TYPE_CHECKING:
    from llmconv.doctor.finding import Checkup
    from llmconv.lowering.lower import LoweringTable
    from llmconv.passes.observer import Observer
    from llmconv.sources.family import Family
    from llmconv.sources.source import Source

GROUP = "llmconv"
Kind = Literal[
    "pass",
    "source",
    "quantizer",
    "backend",
    "runtime",
    "exporter",
    "evaluator",
    "chooser",
    "executor",
    "onnx_pass",
    "scheme",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_HOOKS = {
    "pass": "register_passes",
    "source": "register_sources",
    "quantizer": "register_quantizers",
    "backend": "register_backends",
    "runtime": "register_runtimes",
    "exporter": "register_exporters",
    "evaluator": "register_evaluators",
    "chooser": "register_choosers",
    "executor": "register_executors",
    "onnx_pass": "register_onnx_passes",
    "scheme": "register_schemes",
}
_NOTHING = "brings nothing; decorate its register_ functions with llmconv.hookimpl"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registered:
    """One plugin class and the distribution that brought it, e.g. "llmconv 0.1.0"."""

    name: str
    plugin: type
    distribution: str


@dataclass(frozen=True)
class Loaded:
    """One hook module; pluggy calls its hooks through a manager of its own, so that its errors are its own."""

    distribution: str
    module: Any
    manager: pluggy.PluginManager


@dataclass
class Registry:
    """All plugins that can be loaded, and those that cannot, with the reason.

    Attributes:
        loaded: every hook module.
        broken: distribution and entry point, hook or class -> why it cannot be used.
        off: distributions that `LLMCONV_PLUGINS` leaves out.
        files: plugins that were loaded from a file.
    """

    loaded: list[Loaded] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    off: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    _found: dict[Kind, dict[str, list[Registered]]] = field(default_factory=dict)

    @classmethod
    def load(cls, *names: str) -> Registry:
        """Load the entry points of the group `llmconv`; one that fails is a warning, and an error only when needed.

        Args:
            names: of the entry points to load, so that the others are not imported; all by default.

        Raises:
            PluginError: `LLMCONV_PLUGINS` names what is not installed.
        """
        on, off = selected(entry_points(group=GROUP))
        registry = cls(off=[_distribution(entry) for entry in off])
        for entry in on:
            if not names or entry.name in names:
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
        """Add one hook module: what of it is decorated with `hookimpl` is called.

        Raises:
            PluginError: it implements a hook that does not exist, or is for another version of the plugin API.
        """
        check_api(module)
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hooks)
        try:
            manager.register(module)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{distribution}: {' '.join(str(error).split())}{_near(error)}") from error
        self.loaded.append(Loaded(distribution, module, manager))
        self._found.clear()

    def add_file(self, file: Path) -> None:
        """Run a Python file, and add its hooks.

        Raises:
            PluginError: it fails, or brings nothing.
        """
        module = module_of_file(file)
        self.add(file.name, module)
        if not self.loaded[-1].manager.get_hookcallers(module):
            raise PluginError(f"plugin {file}: {_NOTHING}")
        self.files.append(file)

    def registered(self, kind: Kind) -> list[Registered]:
        """Every plugin of one kind, also those of one name."""
        return [entry for _, found in sorted(self._named(kind).items()) for entry in found]

    def of_kind(self, kind: Kind) -> Mapping[str, Registered]:
        """Plugins of one kind by name, but for those whose name two distributions claim."""
        return {name: found[0] for name, found in self._named(kind).items() if len(found) == 1}

    @cached_property
    def lowerings(self) -> LoweringTable:
        """The function of each fx op, from all plugins; for an op that two lower, one that refuses."""
        return self.lowerings_by({})

    def lowerings_by(self, chosen: Mapping[str, str]) -> LoweringTable:
        """As `lowerings`, with what a recipe chooses of several.

        Args:
            chosen: op -> distribution.

        Raises:
            RecipeError: nothing lowers such an op, or that distribution does not.
        """
        require_known(chosen, self._ops)
        return {op: chosen_of(op, found, chosen.get(str(op)))[1] for op, found in self._ops.items()}

    def lowered_by(self, op: Any, chosen: Mapping[str, str]) -> str:
        """The distribution that lowers an op, where a recipe chooses as it does."""
        return chosen_of(op, self._ops[op], chosen.get(str(op)))[0] if op in self._ops else ""

    @cached_property
    def _ops(self) -> dict[Any, list[tuple[str, Any]]]:
        """Each op -> the distributions that lower it, with their functions."""
        found: dict[Any, list[tuple[str, Any]]] = {}
        for distribution, table in self._call(LOWERINGS):
            for op, function in table.items():
                found.setdefault(op, []).append((distribution, function))
        return found

    @property
    def registered_lowerings(self) -> list[tuple[str, Any]]:
        """Every op that a plugin lowers, with its distribution."""
        return [(distribution, op) for op, found in self._ops.items() for distribution, _ in found]

    @cached_property
    def registered_recipes(self) -> list[tuple[str, Path]]:
        """The file of every recipe that a plugin brings, with its distribution."""
        folders = self._each(RECIPES)
        return [(distribution, file) for distribution, folder in folders for file in sorted(folder.glob("*.toml"))]

    @property
    def chipsets(self) -> list[Chipset]:
        """Every chipset that a plugin knows."""
        return [chipset for _, chipset in self.registered_chipsets]

    @cached_property
    def registered_chipsets(self) -> list[tuple[str, Chipset]]:
        """Every chipset that a plugin knows, with its distribution."""
        return self._each(CHIPSETS)

    @cached_property
    def families(self) -> Mapping[str, type[Family]]:
        """The family of each model type, but for types that two families claim."""
        found: dict[str, tuple[str, type[Family]]] = {}
        twice: set[str] = set()
        for distribution, family in self.registered_families:
            for kind in family.types:
                other, first = found.setdefault(kind, (distribution, family))
                if first is not family:
                    twice.add(kind)
                    both = f"model type '{kind}' comes from both {other} and {distribution}; uninstall one"
                    self._break(f"{distribution} (family {family.__name__})", PluginError(both))
        return {kind: family for kind, (_, family) in found.items() if kind not in twice}

    @cached_property
    def registered_families(self) -> list[tuple[str, type[Family]]]:
        """Every family that a plugin brings, with its distribution."""
        return self._each(FAMILIES)

    def observers(self) -> list[Observer]:
        """One of each, for one conversion."""
        made = []
        for _, observer in self.registered_observers:
            with plugin_code(observer, f"observer {observer.__name__}"):
                made.append(observer())
        return made

    @cached_property
    def registered_observers(self) -> list[tuple[str, type[Observer]]]:
        """Every observer that a plugin brings, with its distribution."""
        return self._each(OBSERVERS)

    @cached_property
    def registered_checkups(self) -> list[tuple[str, Checkup]]:
        """What plugins look at on this machine, each with its distribution."""
        return self._each(CHECKUPS)

    def source(self, name: str, options: Mapping[str, Any]) -> Source:
        """A source that knows all families.

        Raises:
            PluginError, RecipeError: as of `create`.
        """
        made: Source = self.create("source", name, options)
        made.know(self.families)
        return made

    def chipset(self, name: str) -> Chipset:
        """The chipset of that name, part number, or device.

        Raises:
            RecipeError: no plugin knows it.
        """
        return find(name, self.chipsets)

    def find(self, kind: Kind, name: str) -> Registered:
        """The class that a recipe names, with the distribution that brought it.

        Raises:
            PluginError: no plugin has that name, or two have.
        """
        known = self._named(kind)
        found = known.get(name, [])
        if len(found) == 1:
            return found[0]
        if found:
            brought = list(dict.fromkeys(f.distribution for f in found))
            if len(brought) == 1:
                classes = " and ".join(f.plugin.__name__ for f in found)
                raise PluginError(f"{kind} '{name}' stands for {classes} of {brought[0]}; give one another name")
            raise PluginError(f"{kind} '{name}' comes from both {' and '.join(brought)}; uninstall one")
        broken = "".join(f"; plugin {where} cannot be loaded: {why}" for where, why in self.broken.items())
        raise PluginError(f"no {kind} named '{name}'{nearest(name, known)}{broken}")

    def create(self, kind: Kind, name: str, options: Mapping[str, Any]) -> Any:
        """An instance of a plugin class with validated options.

        Raises:
            PluginError: no plugin has that name, or its class fails.
            RecipeError: an option is unknown, missing, or of the wrong type.
        """
        plugin, where = self.find(kind, name).plugin, f"{kind} '{name}'"
        with plugin_code(plugin, where):
            made: Any = plugin(**validated(plugin, options, where))
            if kind == "pass":
                made = made.knowing(self.create)
            return made

    def source_for(self, checkpoint: Path) -> str:
        """The name of the source that reads what lies there.

        Raises:
            PluginError: none does, or several do.
        """
        found = []
        for name, entry in sorted(self.of_kind("source").items()):
            with plugin_code(entry.plugin, f"source '{name}'"):
                if entry.plugin.reads(checkpoint):  # type: ignore[attr-defined]
                    found.append(name)
        if len(found) == 1:
            return found[0]
        if found:
            raise PluginError(f"{checkpoint}: read by sources {' and '.join(found)}; name one as model.source")
        if not checkpoint.exists():
            raise PluginError(f"{checkpoint}: no such file or folder; set model.checkpoint or pass --checkpoint")
        raise PluginError(
            f"{checkpoint}: no source knows what lies there; give a model's folder or file, or name the source as "
            "model.source"
        )

    def _load(self, entry: EntryPoint) -> None:
        distribution = _distribution(entry)
        try:
            module = entry.load()
            self.add(distribution, module)
            if not self.loaded[-1].manager.get_hookcallers(module):
                raise PluginError(_NOTHING)
        except ANYTHING as error:
            self._break(f"{distribution} ({entry.name})", error)

    def _named(self, kind: Kind) -> Mapping[str, list[Registered]]:
        if kind not in self._found:
            found: dict[str, list[Registered]] = {}
            for distribution, plugins in self._call(_HOOKS[kind]):
                for plugin in plugins:
                    if lacking := lacks(plugin, kind):
                        where = f"{distribution} ({kind} {getattr(plugin, '__name__', plugin)!s})"
                        self._break(where, PluginError(lacking))
                    else:
                        found.setdefault(plugin.name, []).append(Registered(plugin.name, plugin, distribution))
            self._found[kind] = found
        return self._found[kind]

    def _each(self, hook: str) -> list[tuple[str, Any]]:
        """What a hook of lists gives, one by one, each with its distribution."""
        return [(distribution, one) for distribution, found in self._call(hook) for one in found]

    def _call(self, hook: str) -> Iterator[tuple[str, Any]]:
        """What the hooks of that name give, each with its distribution; nothing of one that raises."""
        for plugin in self.loaded:
            caller = getattr(plugin.manager.hook, hook)
            try:
                results = caller()  # without those that are None
                if len(results) < len(caller.get_hookimpls()):
                    raise PluginError("gives None; return what it is to bring")
                given = [checked(hook, found) for found in results]
            except ANYTHING as error:
                self._break(f"{plugin.distribution} ({hook})", error)
                continue
            yield from ((plugin.distribution, found) for found in given)

    def _break(self, where: str, error: BaseException) -> None:
        if where not in self.broken:
            said = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            self.broken[where] = reason = " ".join(said.split())
            logger.warning("plugin %s cannot be loaded: %s", where, reason)


def _near(error: pluggy.PluginValidationError) -> str:
    """The hook that a misspelt one may be."""
    misspelt = re.match(r"unknown hook '(\w+)'", str(error))
    return nearest(misspelt[1], [name for name in vars(hooks) if name.startswith("register_")]) if misspelt else ""


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"
