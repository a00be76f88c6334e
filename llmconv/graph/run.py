"""Run a part on real numbers: each weight is read at its first use and dropped after its last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from llmconv.encodings.value import Encoding, Encodings
from llmconv.graph.model import IO_META, aten, inputs_of, is_weight, name_of, outputs_of
from llmconv.graph.ops import MOVEMENT
from llmconv.weights.store import WeightStore

ROUNDED = ("past_key", "past_value")  # inputs that runs with the same encodings have given
Observer = Callable[[fx.Node, Tensor], None]


class Program:
    """A part that can be run on several inputs at once; the part must not change meanwhile.

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
        self._steps = [
            _Step(node, _caller(node), dead, node.op != "get_attr" and is_weight(node), self._encoding(node))
            for node, dead in _with_last_uses(part, keep=set(self._outputs.values()))
        ]
        self._given = {n: _Step(n, _caller(n), (), False, self._encoding(n)) for n in self._inputs.values()}

    def run(self, inputs: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Run on each of several inputs, node by node, so that a weight is read once for all of them.

        Args:
            inputs: tensors by I/O name; float32, or int32 for ids.

        Returns:
            The outputs by I/O name, for each of the inputs.
        """
        with torch.no_grad():
            given = [(name, self._given[node]) for name, node in self._inputs.items()]
            values = {step.node: [self._observed(step, x[name]) for x in inputs] for name, step in given}
            for step in self._steps:
                values[step.node] = self._compute(step, values, len(inputs))
                for unused in step.dead:
                    del values[unused]
        return [{name: values[node][i] for name, node in self._outputs.items()} for i in range(len(inputs))]

    def _compute(self, step: _Step, values: Mapping[fx.Node, list[Any]], count: int) -> list[Any]:
        if step.node.op == "get_attr":
            return [self.weights.read(str(step.node.target))] * count
        if step.shared:
            return [step.call(values, 0)] * count
        return [self._observed(step, step.call(values, i)) for i in range(count)]

    def _observed(self, step: _Step, value: Any) -> Any:
        """The value as the nodes after it see it: shown to the observer, then fake-quantized."""
        if not isinstance(value, Tensor) or not value.is_floating_point():  # ids, and an op with many results
            return value
        if self.observer is not None:
            self.observer(step.node, value)
        return value if step.encoding is None else step.encoding.fake_quantize(value)

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
    """A node, ready to be run.

    Attributes:
        call: the op on the values of one of several inputs.
        dead: nodes that nothing after this one uses.
        shared: whether it is computed from weights alone.
        encoding: what its value is rounded by.
    """

    node: fx.Node
    call: Callable[[Mapping[fx.Node, list[Any]], int], Any]
    dead: Sequence[fx.Node]
    shared: bool
    encoding: Encoding | None


def _caller(node: fx.Node) -> Callable[[Mapping[fx.Node, list[Any]], int], Any]:
    """The node's op on the values of one of several inputs; arguments are looked through once, not for each run."""
    run: Any = _convolve if node.target is aten.conv2d.default else node.target
    args, kwargs = node.args, node.kwargs
    places = [(i, arg) for i, arg in enumerate(args) if isinstance(arg, fx.Node)]
    if len(places) < len(node.all_input_nodes) or kwargs:  # some are in a list, or repeated

        def general(values: Mapping[fx.Node, list[Any]], i: int) -> Any:
            found, named = fx.map_arg((args, kwargs), lambda n: values[n][i])
            return run(*found, **named)

        return general
    template = list(args)

    def call(values: Mapping[fx.Node, list[Any]], i: int) -> Any:
        found = template.copy()
        for place, arg in places:
            found[place] = values[arg][i]
        return run(*found)

    return call


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """aten.conv2d without oneDNN, which would copy each weight into a layout of its own, for a single use.

    `torch.backends.mkldnn.enabled` would keep oneDNN from it as well, but from every thread of the program.
    """
    if groups != 1 or tuple(dilation) != (1, 1):
        return aten.conv2d.default(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]
    size = weight.shape[2:]
    return aten.thnn_conv2d.default(x, weight, size, bias, stride, padding)  # type: ignore[no-any-return]


def _with_last_uses(part: fx.GraphModule, keep: set[fx.Node]) -> list[tuple[fx.Node, list[fx.Node]]]:
    """Every node but inputs and output, in order, each with the nodes that nothing after it uses."""
    steps: list[tuple[fx.Node, list[fx.Node]]] = []
    used = set(keep)
    for node in reversed(part.graph.nodes):
        if node.op in ("placeholder", "output"):
            continue
        ending = [n for n in (node, *node.all_input_nodes) if n not in used]
        used.update(ending)
        steps.append((node, ending))
    return steps[::-1]


def evaluate(
    part: fx.GraphModule,
    inputs: Mapping[str, Tensor],
    weights: WeightStore,
    encodings: Encodings | None = None,
    observer: Observer | None = None,
) -> dict[str, Tensor]:
    """Run one part once; arguments as of `Program`."""
    return Program(part, weights, encodings, observer).run([inputs])[0]
