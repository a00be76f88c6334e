"""Run a part on real numbers: each weight is read at its first use and dropped after its last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from llmconv.encodings.value import Encoding, Encodings, Rounding
from llmconv.graph.alike import Group, groups_of, operands
from llmconv.graph.calls import Call, Unit, Values, caller, nodes_of
from llmconv.graph.model import IO_META, inputs_of, is_weight, name_of, outputs_of, shape_of, value_of
from llmconv.graph.ops import MOVEMENT, is_table
from llmconv.weights.held import HeldStore
from llmconv.weights.store import WeightStore, look_up

WHOLE = 1 << 18  # numbers of an embedding table that is held whole; of a larger one rows are read as they are asked for
ROUNDED = ("past_key", "past_value")  # inputs that runs with the same encodings have given
Observer = Callable[[fx.Node, Tensor], None]
Finish = Callable[[Any], Any]


class Program:
    """A part that can be run on several inputs at once; the part must not change meanwhile.

    What each head does alike is one op on all heads where that gives the same numbers. Of weights that a `HeldStore`
    holds, their rows and shapes are made in the first run alone; of large embedding tables it reads the rows that are
    asked.

    Args:
        observer: called with each floating-point value before it is quantized.
        encodings: when given, every value with an encoding is quantized and dequantized where it is made.
    """

    def __init__(
        self,
        part: fx.GraphModule,
        weights: WeightStore,
        encodings: Encodings | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.weights, self.encodings, self.observer = weights, encodings, observer
        self._inputs, self._outputs = inputs_of(part), outputs_of(part)
        groups = groups_of(part.graph, lambda node: self._encoding(node) is None)
        tables = _tables(part) if isinstance(weights, HeldStore) else set()
        units = [unit for unit in _in_order(part, groups) if unit not in tables]
        reads = [_read_by(unit, groups) for unit in units]
        dead = _last_uses(units, reads, keep=set(self._outputs.values()))
        apart = {node for read in (*reads, self._outputs.values()) for node in read if isinstance(node, fx.Node)}
        self._steps = [self._step(*given, groups, apart, tables) for given in zip(units, dead, strict=True)]
        self._given = {node: self._finish((node,)) for node in self._inputs.values()}
        self._kept: dict[Unit, Tensor] = {}

    def run(self, inputs: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Run on each of several inputs, node by node, so that a weight is read once for all of them.

        Args:
            inputs: tensors by I/O name; float32, or int32 for ids.

        Returns:
            The outputs by I/O name, for each of the inputs.
        """
        count, known = len(inputs), len(self._kept)
        values: dict[Unit, list[Any]] = {unit: [value] * count for unit, value in self._kept.items()}
        with torch.no_grad():
            for name, node in self._inputs.items():
                finish = self._given[node]
                values[node] = [finish(x[name]) if finish else x[name] for x in inputs]
            for step in self._steps:
                made = values[step.unit] = self._compute(step, values, count)
                if step.apart:
                    parts = zip(*(_apart(value, step.nodes) for value in made), strict=True)
                    values |= {node: list(each) for node, each in zip(step.nodes, parts, strict=True)}
                if step.shared:
                    self._keep(step, values)
                for unused in step.dead:
                    values.pop(unused, None)
        if len(self._kept) > known:
            self._steps = [step for step in self._steps if step.unit not in self._kept]
        return [{name: values[node][i] for name, node in self._outputs.items()} for i in range(count)]

    def _step(
        self,
        unit: Unit,
        dead: Sequence[Unit],
        groups: Mapping[fx.Node, Group],
        apart: set[fx.Node],
        tables: set[Unit],
    ) -> _Step:
        nodes = nodes_of(unit)
        looks_up = not tables.isdisjoint(nodes[0].all_input_nodes)
        return _Step(
            unit,
            nodes,
            _looking_up(nodes[0], self.weights) if looks_up else caller(unit, groups),
            dead,
            weight=str(nodes[0].target) if nodes[0].op == "get_attr" else None,
            shared=is_weight(nodes[0]),
            apart=isinstance(unit, Group) and not apart.isdisjoint(nodes),
            finish=self._finish(nodes),
        )

    def _compute(self, step: _Step, values: Values, count: int) -> list[Any]:
        if step.weight is not None:
            return [self.weights.read(step.weight)] * count
        call, finish = step.call, step.finish
        if step.shared:
            return [call(values, 0)] * count
        if finish is None:
            return [call(values, i) for i in range(count)]
        return [finish(call(values, i)) for i in range(count)]

    def _keep(self, step: _Step, values: Values) -> None:
        """Remember what lies in a weight that is held anyway."""
        if isinstance(self.weights, HeldStore) and self.weights.holds(values[step.unit][0]):
            self._kept |= {unit: values[unit][0] for unit in (step.unit, *step.nodes) if unit in values}

    def _finish(self, nodes: Sequence[fx.Node]) -> Finish | None:
        """From a value to what the nodes after it see: shown to the observer, then fake-quantized."""
        rounding, observer = self._rounding(nodes), self.observer
        if observer is None:
            return rounding

        def finish(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():  # ids, and an op with many results
                return value
            for node, part in zip(nodes, _apart(value, nodes), strict=True):
                observer(node, part)
            return value if rounding is None else rounding(value)

        return finish

    def _rounding(self, nodes: Sequence[fx.Node]) -> Rounding | None:
        found = [encoding for node in nodes if (encoding := self._encoding(node)) is not None]
        return Rounding(found, shape_of(nodes[0])) if found else None

    def _encoding(self, node: fx.Node) -> Encoding | None:
        """What a node's value is rounded by; None where its numbers lie on that grid already.

        They do where they are moved from others of that encoding, and where earlier runs have given them.
        """
        if self.encodings is None or (node.op == "placeholder" and node.meta[IO_META].kind in ROUNDED):
            return None
        found = self.encodings.values.get(name_of(node))
        moved = node.op == "call_function" and node.target in MOVEMENT
        if moved and all(self.encodings.values.get(name_of(n)) == found for n in node.all_input_nodes):
            return None
        return found


@dataclass(frozen=True)
class _Step:
    """A node or a group of them, ready to be run.

    Attributes:
        call: the op on the values of one of several inputs.
        dead: what nothing after this uses.
        weight: the one that is read.
        shared: whether it is computed from weights alone.
        apart: whether nodes after it use a group's results one by one.
        finish: what comes between its value and the nodes after it.
    """

    unit: Unit
    nodes: tuple[fx.Node, ...]
    call: Call
    dead: Sequence[Unit]
    weight: str | None
    shared: bool
    apart: bool
    finish: Finish | None


def _tables(part: fx.GraphModule) -> set[Unit]:
    """Large weights that are looked up and nothing else."""
    return {node for node in part.graph.find_nodes(op="get_attr") if value_of(node).numel() > WHOLE and is_table(node)}


def _looking_up(node: fx.Node, weights: WeightStore) -> Call:
    table, ids = node.all_input_nodes
    return lambda values, i: look_up(weights, str(table.target), values[ids][i])


def _apart(value: Tensor, nodes: Sequence[fx.Node]) -> Sequence[Tensor]:
    """The results of nodes whose joined one a value is."""
    return value.chunk(len(nodes)) if len(nodes) > 1 else (value,)


def _in_order(part: fx.GraphModule, groups: Mapping[fx.Node, Group]) -> list[Unit]:
    """Every group and every node outside groups, but inputs and output, operands first; weights where they are used."""
    found: dict[Unit, None] = {}

    def add(node: fx.Node) -> None:
        unit = groups.get(node, node)
        if unit in found or node.op == "placeholder":
            return
        for operand in (operand for n in nodes_of(unit) for operand in n.all_input_nodes):
            add(operand)
        found[unit] = None

    for node in part.graph.nodes:
        if node.op == "call_function" and not is_weight(node):
            add(node)
    for node in outputs_of(part).values():
        add(node)
    return list(found)


def _read_by(unit: Unit, groups: Mapping[fx.Node, Group]) -> list[Unit]:
    """The values that a unit takes."""
    if isinstance(unit, Group) and not unit.joined:
        return [node for n in unit.nodes for node in n.all_input_nodes]
    return [v for value in operands(nodes_of(unit), groups) for v in (value if isinstance(value, tuple) else (value,))]


def _last_uses(units: Sequence[Unit], reads: Sequence[Sequence[Unit]], keep: set[Unit]) -> list[list[Unit]]:
    """For each unit what nothing after it uses."""
    found = []
    used = set(keep)
    for unit, read in zip(reversed(units), reversed(reads), strict=True):
        ending = [v for v in dict.fromkeys((unit, *nodes_of(unit), *read)) if v not in used]
        used.update(ending)
        found.append(ending)
    return found[::-1]


def evaluate(
    part: fx.GraphModule,
    inputs: Mapping[str, Tensor],
    weights: WeightStore,
    encodings: Encodings | None = None,
    observer: Observer | None = None,
) -> dict[str, Tensor]:
    """Run one part once; arguments as of `Program`."""
    return Program(part, weights, encodings, observer).run([inputs])[0]
