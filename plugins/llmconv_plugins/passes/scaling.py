"""Base of passes that take a factor out of each channel at one end and put it in at the other, in the weights alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from llmconv import PassError
from llmconv.graph import Model, name_of, uses_of
from llmconv.passes import Pass, PassContext
from llmconv.quantization import chosen_on_samples
from llmconv.weights import Columns, Derived, Held, Rows
from llmconv_plugins.passes.channels import Table


@dataclass(frozen=True)
class Ends:
    """What gives the channels of a value, and what reads them.

    Attributes:
        value: its structural name.
        gives: weights and biases with a row a channel, which are divided.
        given: of each of those rows, which factor, int64.
        rows: weights and biases whose rows are multiplied: what meets the channels in a product.
        columns: weights whose columns are.
        read: of each of those rows or columns, which factor, int64.
    """

    value: str
    gives: Sequence[str]
    given: Tensor
    rows: Sequence[str]
    columns: Sequence[str]
    read: Tensor

    def change(self, table: Table, factors: Tensor) -> None:
        """Put both ends into a table."""
        for name in self.gives:
            table.change(name, lambda x: Rows(x, Held(factors[self.given]), divide=True))
        for name in self.rows:
            table.change(name, lambda x: Rows(x, Held(factors[self.read])))
        for name in self.columns:
            table.change(name, lambda x: Columns(x, Held(factors[self.read])))


def read_by_heads(heads: int, groups: int, size: int) -> Tensor:
    """Of each channel of the heads of queries, which channel of the groups of keys or values it meets."""
    channels = torch.arange(groups * size).reshape(groups, 1, size)
    return channels.expand(groups, heads // groups, size).flatten()


@dataclass(frozen=True)
class ScalingPass(Pass):
    """Changes both ends of some values by factors that are chosen on calibration text; without it, nothing.

    Attributes:
        before: the pass that leaves nothing to find.
    """

    needs_calibration: ClassVar[bool] = True
    tolerance: ClassVar[float | None] = 1e-4
    before: ClassVar[str]

    @abstractmethod
    def ends(self, part: fx.GraphModule) -> Iterator[Ends | None]:
        """Of the values of a whole graph as it was traced; one whose weights are used elsewhere too is left out."""

    @abstractmethod
    def factors(self, model: Model, context: PassContext, found: Sequence[Ends]) -> Mapping[str, Tensor]:
        """By value, of those that are to change."""

    def run(self, model: Model, context: PassContext) -> bool:
        """Choose the factors, or take those of an earlier run, and replace the table of weights."""
        parts = [part for graph in model.graphs.values() for part in graph.parts]
        found = list(_used_once(parts[0], self.ends(parts[0])))
        if not found or len(parts) > len(model.graphs):
            raise PassError(f"finds nothing to scale in one whole graph; put {self.name} before {self.before}")
        known = chosen_on_samples(
            model, context, self.name, lambda: self.factors(model, context, found), options=asdict(self)
        )
        table = Table()
        for ends in found:
            if (factors := known.get(ends.value)) is not None:
                ends.change(table, factors)
        if table.weights:
            model.weights = Derived(model.weights, table.weights)
        return bool(table.weights)


def _used_once(part: fx.GraphModule, found: Iterator[Ends | None]) -> Iterator[Ends]:
    used = {name_of(w): len(list(uses_of(w))) for w in part.graph.find_nodes(op="get_attr")}
    for ends in found:
        if ends is not None and all(used.get(name) == 1 for name in (*ends.gives, *ends.rows, *ends.columns)):
            yield ends
