"""A recipe's graphs: each by its name, or lists of lengths and contexts that stand for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, model_validator

from llmconv.recipe.section import Section

GraphName = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9]*$")]
_Numbers = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


class GraphSection(Section):
    """One graph at fixed shapes.

    Attributes:
        ar: tokens that the graph reads in one run.
        context: positions that it sees; with `context = ar` it has no past.
    """

    ar: int = Field(ge=1)
    context: int = Field(ge=1)

    @model_validator(mode="after")
    def _holds(self) -> GraphSection:
        if self.context < self.ar:
            raise ValueError(f"context = {self.context} is below ar = {self.ar}; a graph sees at least what it reads")
        return self


class GraphLists(Section):
    """A graph for each of the lengths with each of the contexts.

    Attributes:
        ar: tokens that a graph reads in one run, of each.
        context: positions that it sees, of each.
    """

    ar: _Numbers
    context: _Numbers

    @model_validator(mode="after")
    def _holds(self) -> GraphLists:
        for key, numbers in (("ar", self.ar), ("context", self.context)):
            if twice := [n for i, n in enumerate(numbers) if n in numbers[:i]]:
                raise ValueError(f"{key} names {twice[0]} twice; remove one")
        least, most = min(self.context), max(self.ar)
        if least < most:
            raise ValueError(f"context = {least} is below ar = {most}; a graph sees at least what it reads")
        return self

    def named(self) -> dict[str, dict[str, int]]:
        """Each graph by a name: `prompt`, or `token` where it reads one token, and numbers where others are alike."""
        prompts = [ar for ar in self.ar if ar > 1]
        found = {}
        for context in sorted(self.context):
            seen = str(context) if len(self.context) > 1 else ""
            for ar in sorted(self.ar, reverse=True):
                name = "token" + seen if ar == 1 else f"prompt{ar}of{context}" if len(prompts) > 1 else "prompt" + seen
                found[name] = {"ar": ar, "context": context}
        return found


def by_name(graphs: Any) -> Any:
    """A recipe's graphs by their names, whichever way they are written.

    Raises:
        ValueError: lists are wrong, or stand beside names.
    """
    if not isinstance(graphs, Mapping):
        return graphs
    listed = [key for key in GraphLists.model_fields if key in graphs and not isinstance(graphs[key], Mapping)]
    if not listed:
        return graphs
    if others := [key for key in graphs if key not in GraphLists.model_fields]:
        raise ValueError(
            f"'{listed[0]}' lists what all graphs have, so '{others[0]}' cannot stand beside it; write every graph as "
            "[graphs.NAME], or lists of ar and context alone"
        )
    try:
        return GraphLists.model_validate(graphs, strict=True).named()
    except ValidationError as error:
        raise ValueError(_said(error)) from None


def alike(graphs: Mapping[str, GraphSection]) -> tuple[str, str] | None:
    """Two graphs that are one, if there are any: nothing but a name would tell them apart."""
    seen: dict[tuple[int, int], str] = {}
    for name, graph in graphs.items():
        if (other := seen.setdefault((graph.ar, graph.context), name)) != name:
            return other, name
    return None


def _said(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    key = str(first["loc"][0])
    example = f"{key} = {[1, 128] if key == 'ar' else [512, 1024]}"
    if first["type"] == "missing":
        return f"{key} is missing beside the other list, e.g. {example}"
    return f"{key} lists numbers from 1 on, e.g. {example}, not {first['input']!r}"
