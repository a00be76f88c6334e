"""Make the low-rank factors of adapters inputs of the graphs, so that a runtime switches adapters in one bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, fx

from llmconv import PassError
from llmconv.graph import IO, Model, aten, insert, insert_input, name_of, shape_of, value_of, weight_of
from llmconv.passes import Pass, PassContext
from llmconv.weights import Factors, low_rank_change

WEIGHT = ".weight"


@dataclass(frozen=True)
class LoraInputs(Pass):
    """Each linear of `targets` adds what an adapter's factors make of its inputs; the host gives the factors.

    Given:  linear(x (1, T, I), W (O, I)), or of each head linear(x, W[rows])
    Result: linear(x, W) + (x @ a) @ b, with inputs a (1, I, rank) and b (1, rank, O), whose scale is in b; of each head
            b's columns. Zeros leave the model as it is, and an adapter of a smaller rank is filled up with them.
    Not applied: nothing is skipped: a target that no linear has is an error, and so is an adapter that changes
            anything else.
    Source: Hu et al., 2021; Genie's LoRA version 1, which fills inputs with "lora" in their names from files.

    Attributes:
        rank: of the inputs; the largest of the adapters'.
        targets: the last words of modules' names, as peft has them.
    """

    name: ClassVar[str] = "lora_inputs"
    runs_after: ClassVar[tuple[str, ...]] = ("rotate", "smooth", "balance_cache", "kv_cache_io", "split_heads")

    rank: int = 8
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PassError(f"lora_inputs' rank is {self.rank}; choose 1 or more")
        if not self.targets:
            raise PassError("lora_inputs' targets name no module; give some, as peft's target_modules has them")

    def run(self, model: Model, context: PassContext) -> bool:
        """Insert the inputs into every graph, and what each adapter gives them."""
        parts = [part for graph in model.graphs.values() for part in graph.parts]
        tables = {name: self._table(name, model, parts, changes) for name, changes in context.adapters.items()}
        for graph in model.graphs.values():
            for part in graph.parts:
                self._check_targets(graph.name, part)
                self._insert(part)
            graph.adapters = tables
        return True

    def _targeted(self, weight: str) -> bool:
        return any(_is_of(weight, target) for target in self.targets)

    def _linears(self, part: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
        """The linears that take factors, each with its weight."""
        linears = [n for n in part.graph.nodes if n.target is aten.linear.default]
        found = [(n, w) for n in linears if isinstance(n.args[1], fx.Node) and (w := weight_of(n.args[1])) is not None]
        return [(n, w) for n, w in found if self._targeted(name_of(w))]

    def _check_targets(self, graph: str, part: fx.GraphModule) -> None:
        weights = [name_of(weight) for _, weight in self._linears(part)]
        for target in self.targets:
            if not any(_is_of(weight, target) for weight in weights):
                raise PassError(
                    f"graph '{graph}' has no linear '{target}'; change lora_inputs' targets, and list the pass before "
                    "linear_to_conv and split_model"
                )

    def _insert(self, part: fx.GraphModule) -> None:
        made: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}  # weight -> x @ a (1, T, rank), b
        for linear, weight in self._linears(part):
            if weight not in made:
                made[weight] = self._down(part.graph, linear, weight)
            down, b = made[weight]
            users, base = list(linear.users), name_of(linear)
            with part.graph.inserting_before(linear.next):
                columns = _columns(part.graph, linear.args[1], weight, b, base)  # type: ignore[arg-type]
                up = insert(part.graph, aten.matmul.default, (down, columns), f"{base}.lora_up")
                both = insert(part.graph, aten.add.Tensor, (linear, up), f"{base}.with_lora")
            for user in users:
                user.replace_input_with(linear, both)

    def _down(self, graph: fx.Graph, linear: fx.Node, weight: fx.Node) -> tuple[fx.Node, fx.Node]:
        x, (rows, columns), module = linear.args[0], shape_of(weight), name_of(weight).removesuffix(WEIGHT)
        assert isinstance(x, fx.Node)
        names, like = _input_names(name_of(weight)), value_of(x)
        a = insert_input(graph, names[0], like, (1, columns, self.rank), IO("lora"))
        b = insert_input(graph, names[1], like, (1, self.rank, rows), IO("lora"))
        with graph.inserting_before(linear):
            return insert(graph, aten.matmul.default, (x, a), f"{module}.lora_down"), b

    def _table(
        self, adapter: str, model: Model, parts: Sequence[fx.GraphModule], changes: Mapping[str, Factors]
    ) -> dict[str, Tensor]:
        """What an adapter fills the inputs with."""
        weights = {name_of(n): shape_of(n) for part in parts for n in part.graph.find_nodes(op="get_attr")}
        taken = {name_of(weight) for part in parts for _, weight in self._linears(part)}
        found: dict[str, Tensor] = {}
        for weight, shape in weights.items():
            change = low_rank_change(model.weights, weight, changes)
            if change is not None and weight not in taken:
                last = weight.removesuffix(WEIGHT).rpartition(".")[2]
                raise PassError(f"adapter '{adapter}' changes '{weight}'; add '{last}' to lora_inputs' targets")
            if change is not None and len(change[0]) > self.rank:
                raise PassError(f"adapter '{adapter}' is of rank {len(change[0])}; set lora_inputs' rank to it")
            if weight in taken:
                factors = (torch.zeros(1, shape[1], self.rank), torch.zeros(1, self.rank, shape[0]))
                if change is not None:
                    factors[0][0, :, : len(change[0])] = change[0].T
                    factors[1][0, : len(change[0])] = change[1].T
                found |= dict(zip(_input_names(weight), factors, strict=True))
        return found


def _is_of(weight: str, target: str) -> bool:
    """Whether a weight's module has that last word."""
    return f".{weight}".endswith(f".{target}{WEIGHT}")


def _input_names(weight: str) -> tuple[str, str]:
    """Of a and b."""
    stem = weight.removesuffix(WEIGHT).replace(".", "_")
    return f"{stem}_lora_a", f"{stem}_lora_b"


def _columns(graph: fx.Graph, rows: fx.Node, weight: fx.Node, b: fx.Node, base: str) -> fx.Node:
    """The columns of b that go with the rows of a weight that a linear is over."""
    if rows is weight:
        return b
    if rows.target is not aten.slice.Tensor or rows.args[:2] != (weight, 0):
        raise PassError(f"'{base}' is over no rows of '{name_of(weight)}'; list lora_inputs before linear_to_conv")
    return insert(graph, aten.slice.Tensor, (b, 2, *rows.args[2:]), f"{base}.lora_b")
