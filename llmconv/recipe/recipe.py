"""A recipe: TOML in, validated objects out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr, ValidationError, field_validator

from llmconv.errors import RecipeError
from llmconv.recipe import shipped
from llmconv.recipe.graphs import GraphLists, GraphName, GraphSection, alike, by_name
from llmconv.recipe.located import located
from llmconv.recipe.overrides import override
from llmconv.recipe.paths import resolve
from llmconv.recipe.reading import first_message, text_of, values_of
from llmconv.recipe.requires import require_installed
from llmconv.recipe.section import Section
from llmconv.recipe.sections import (
    BackendSection,
    CalibrationSection,
    ChatSection,
    ExecutorSection,
    ModelSection,
    Named,
    OnnxPassEntry,
    OutputSection,
    PassEntry,
    TargetSection,
    VerifySection,
)

if TYPE_CHECKING:
    from llmconv.plugins.registry import Registry
    from llmconv.target import Chipset

_NAME = re.compile(r"\w+")  # of a recipe that is installed, and no file's
_OUTSIDE = ("output.", "executor.")  # settings of where files go and who does the work, not of what is in a bundle


class Recipe(Section):
    """One conversion, from a checkpoint to a bundle.

    Attributes:
        name: of the conversion; by default the recipe's file has it.
        graphs: by name; all share one set of weights.
        passes: in the order in which they run.
        onnx_passes: over the ONNX of each part, behind its lowering, in the order in which they run.
        lowerings: OP = DISTRIBUTION that lowers it, where several do, such as `"aten.abs.default" = "llmconv-my-abs"`.
        requires: DISTRIBUTION = versions that must be installed, such as `">=1.0,<2"`; checked before anything else.
        plugins: Python files that bring plugins; a recipe by itself runs nothing, so they need `--allow-local-plugins`.
    """

    name: str = "recipe"
    model: ModelSection
    target: TargetSection
    graphs: dict[GraphName, GraphSection] = Field(min_length=1)
    passes: list[PassEntry] = Field(default_factory=list)
    onnx_passes: list[OnnxPassEntry] = Field(default_factory=list)
    lowerings: dict[str, str] = Field(default_factory=dict)
    calibration: CalibrationSection | None = None
    backend: BackendSection
    chat: ChatSection = Field(default_factory=ChatSection)
    verify: VerifySection = Field(default_factory=VerifySection)
    executor: ExecutorSection = Field(default_factory=ExecutorSection)
    output: OutputSection = Field(default_factory=OutputSection)
    requires: dict[str, str] = Field(default_factory=dict)
    plugins: list[Path] = Field(default_factory=list)
    _text: str | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        """Whether the values are the same, however they are written."""
        return isinstance(other, Recipe) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # sections hold lists

    @property
    def text(self) -> str | None:
        """TOML, as it was read, behind what was changed beside it; None of a recipe that was made of values."""
        return self._text

    def require(self, registry: Registry) -> None:
        """Whether what the recipe asks for is installed, and its own Python files were allowed to run.

        Raises:
            RecipeError: a distribution is missing or of another version, or a file was not allowed.
        """
        require_installed(self.requires)
        for file in self.plugins:
            if file not in registry.files:
                raise RecipeError(
                    f"plugins: {file} would run with all your rights; pass --allow-local-plugins if you trust it, "
                    "or install it as a plugin"
                )

    @field_validator("graphs", mode="before", json_schema_input_type=GraphLists | dict[GraphName, GraphSection])
    @classmethod
    def _by_name(cls, graphs: Any) -> Any:
        return by_name(graphs)

    @field_validator("graphs")
    @classmethod
    def _differ(cls, graphs: dict[GraphName, GraphSection]) -> dict[GraphName, GraphSection]:
        if found := alike(graphs):
            raise ValueError(f"'{found[0]}' and '{found[1]}' read and see the same numbers of tokens; remove one")
        return graphs

    @field_validator("passes", "onnx_passes")
    @classmethod
    def _once_each(cls, passes: list[Named]) -> list[Named]:
        names = [entry.name for entry in passes]
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise ValueError(f"'{twice[0]}' stands twice; options go by its name, so remove one")
        return passes

    @property
    def folder(self) -> Path:
        """Where the bundle goes, links followed: it takes the place of a folder, never of a link to one."""
        return (self.output.folder or Path.cwd() / "build" / self.name).resolve()

    @classmethod
    def load(
        cls,
        file: Path | str,
        overrides: Sequence[str] = (),
        *,
        backend: str | None = None,
        executor: str | None = None,
    ) -> Recipe:
        """Read a recipe.

        Args:
            backend, executor: name of another; the recipe's options for its own do not go with it.
            file: TOML, or the name of a recipe of llmconv or a plugin; relative paths in it are relative to its folder.
            overrides: `section.key=value`; relative paths in them are relative to the current folder.

        Raises:
            RecipeError: what is wrong, where, and what to do.
        """
        file = Path(file)
        if not file.exists() and _NAME.fullmatch(str(file)):
            file = shipped.named(str(file))
        if not file.exists():
            raise RecipeError(f"{file}: no such recipe; 'llmconv recipe list' names those that come with llmconv")
        text, where = text_of(file), str(file)
        return cls.loads(text, where, file.parent, overrides, backend=backend, executor=executor, name=file.stem)

    @classmethod
    def loads(
        cls,
        text: str,
        where: str,
        folder: Path,
        overrides: Sequence[str] = (),
        *,
        backend: str | None = None,
        executor: str | None = None,
        name: str = "recipe",
    ) -> Recipe:
        """Read a recipe's text; other arguments as of `load`.

        Args:
            where: it comes from, in messages.
            folder: that relative paths in it are relative to.
            name: of the recipe, where the text gives none.

        Raises:
            RecipeError: as of `load`.
        """
        values = values_of(text, where)
        try:
            resolve(values, folder)
            for section, given in (("backend", backend), ("executor", executor)):
                if given is not None and _name(values.get(section)) != given:
                    values[section] = {"name": given}
            override(values, overrides)
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error
        made = cls.from_dict({"name": name, **values}, where)
        require_installed(made.requires)
        changes = [f"--backend {backend}"] if backend is not None else []
        changes += [f"--set {change}" for change in overrides if not change.startswith(_OUTSIDE)]
        made._text = "".join(f"# with {' '.join(change.split())}\n" for change in changes) + text
        return made

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "recipe") -> Recipe:
        """Validate a recipe given as nested dicts; relative paths are relative to the current folder.

        Raises:
            RecipeError: what is wrong, where, and what to do.
        """
        values = {key: dict(item) if isinstance(item, dict) else item for key, item in values.items()}
        resolve(values, Path.cwd())
        try:
            return cls.model_validate_json(json.dumps(values, default=str), strict=True)  # "2" and true are not 2
        except ValidationError as error:
            raise RecipeError(f"{where}: {first_message(error, cls)}") from error

    def portable(self) -> Recipe:
        """The recipe without what does not tell in its bundle: where that goes, and who does the work."""
        return self.model_copy(update={"output": OutputSection(), "executor": ExecutorSection()})

    def chipsets(self, registry: Registry) -> list[Chipset]:
        """What the parts are for.

        Raises:
            RecipeError: a name is not known, or two are of one chipset.
        """
        found: dict[str, str] = {}  # part number -> name
        for name in self.target.names:
            chipset = registry.chipset(name)
            if chipset.model in found:
                raise RecipeError(
                    f"target.name: '{found[chipset.model]}' and '{name}' are both {chipset.name}; remove one"
                )
            found[chipset.model] = name
        return [registry.chipset(name) for name in self.target.names]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values from which `from_dict` makes the same recipe."""
        return self.model_dump(mode="json")

    def check(self, registry: Registry) -> None:
        """Whether every name and option of the recipe means something.

        Raises:
            RecipeError, PluginError: the first that does not.
        """
        self.require(registry)
        self.chipsets(registry)
        if self.model.source is not None or self.model.options:
            name = self.model.source or registry.source_for(located(self.model.checkpoint))
            registry.source(name, self.model.source_options(self.model.checkpoint))
        for entry in self.passes:
            for use in registry.create("pass", entry.name, entry.options).uses():
                registry.create(*use)
        for over_onnx in self.onnx_passes:
            registry.create("onnx_pass", over_onnx.name, over_onnx.options)
        registry.lowerings_by(self.lowerings)
        registry.create("backend", self.backend.name, self.backend.options)
        registry.create("executor", self.executor.name, self.executor.options)


def _name(section: Any) -> Any:
    return section.get("name") if isinstance(section, dict) else None
