"""A matrix: TOML in, and out of it one recipe for each of its conversions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from llmconv.errors import RecipeError
from llmconv.recipe.located import absolute, elsewhere
from llmconv.recipe.overrides import quoted
from llmconv.recipe.reading import first_message, text_of, values_of
from llmconv.recipe.recipe import Recipe
from llmconv.recipe.schema import DRAFT

Positions = Annotated[int, Field(ge=1)]
Label = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9]")]


@dataclass(frozen=True)
class Member:
    """One conversion of a matrix.

    Attributes:
        name: of its folder; of what each key of the matrix gives it.
        file: of its recipe.
        changes: of the recipe's values, as `Recipe.load` takes them.
        axes: key of the matrix -> what it gives, as people read it.
        recipe: with these changes.
    """

    name: str
    file: Path
    changes: tuple[str, ...]
    axes: dict[str, str]
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Where its bundle goes."""
        return self.recipe.folder


class Matrix(BaseModel):
    """Every recipe with every checkpoint, target and context; where a key is missing, as the recipe has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipes: list[Path] = Field(min_length=1)
    checkpoints: dict[Label, Path] = Field(default_factory=dict)  # by the name that results have
    targets: list[str] = Field(default_factory=list)
    contexts: list[Positions] = Field(default_factory=list)  # positions that the graphs see

    @classmethod
    def load(cls, file: Path) -> Matrix:
        """Read a matrix; relative paths in it are relative to its folder.

        Raises:
            RecipeError: what is wrong, where, and what to do.
        """
        if not file.exists():
            raise RecipeError(f"{file}: no such matrix; docs/batch.md has one to begin with")
        values = values_of(text_of(file), str(file))
        if isinstance(values.get("recipes"), list):
            values["recipes"] = [_from(path, file.parent) for path in values["recipes"]]
        if isinstance(values.get("checkpoints"), dict):
            values["checkpoints"] = {name: _from(path, file.parent) for name, path in values["checkpoints"].items()}
        try:
            return cls.model_validate_json(json.dumps(values, default=str), strict=True)
        except ValidationError as error:
            raise RecipeError(f"{file}: {first_message(error, cls)}") from error

    def members(self, output: Path, changes: Sequence[str] = ()) -> list[Member]:
        """Its conversions, in the order in which it names recipes, checkpoints, targets and contexts.

        Args:
            output: the folder of their folders.
            changes: of every recipe, as `Recipe.load` takes them.

        Raises:
            RecipeError: a recipe is wrong, or two conversions would have one name.
        """
        found: dict[str, Member] = {}
        none = (None,)  # as the recipe has it
        for file, checkpoint, target, context in product(
            self.recipes, self.checkpoints or none, self.targets or none, self.contexts or none
        ):
            member = self._member(file, checkpoint, target, context, output, changes)
            if member.name in found:
                raise RecipeError(
                    f"two conversions would be named '{member.name}'; name recipes' files and checkpoints apart"
                )
            found[member.name] = member
        return list(found.values())

    def _member(
        self,
        file: Path,
        checkpoint: str | None,
        target: str | None,
        context: int | None,
        output: Path,
        changes: Sequence[str],
    ) -> Member:
        given = {"recipe": file.stem, "checkpoint": checkpoint, "target": target, "context": context}
        axes = {key: str(value) for key, value in given.items() if value is not None}
        name = "-".join(map(_plain, axes.values()))
        own = [*changes, f"output.folder={quoted(output / name)}"]
        own += [f"model.checkpoint={quoted(self.checkpoints[checkpoint])}"] if checkpoint is not None else []
        own += [f"target.name={quoted(target)}"] if target is not None else []
        own += _context(file, own, context) if context is not None else []
        return Member(name, file, tuple(own), axes, Recipe.load(file, own))


def matrix_schema() -> dict[str, Any]:
    """The JSON Schema of a matrix."""
    return {"$schema": DRAFT, **Matrix.model_json_schema()}


def _context(file: Path, changes: Sequence[str], context: int) -> Iterator[str]:
    """Every graph at this context alone; one that has no past, since it reads all at once, goes on doing so."""
    recipe = Recipe.load(file, changes)
    if isinstance(values_of(text_of(file), str(file))["graphs"].get("context"), list):
        yield f"graphs.context=[{context}]"
        return
    for name, graph in recipe.graphs.items():
        yield f"graphs.{name}.context={context}"
        if graph.ar == graph.context:
            yield f"graphs.{name}.ar={context}"


def _from(path: Any, folder: Path) -> Any:
    return absolute(path, folder) if isinstance(path, str) and not elsewhere(path) else path


def _plain(text: str) -> str:
    return re.sub(r"\W+", "_", text.lower()).strip("_")
