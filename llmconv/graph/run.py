"""Run a part on real numbers: each weight is read at its first use and dropped after its last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from llmconv.encodings.value import Encodings
from llmconv.graph.model import aten, inputs_of, is_weight, name_of, outputs_of
from llmconv.weights.store import WeightStore

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
        self._steps = _with_last_uses(part, keep=set(self._outputs.values()))
        self._shared = {node for node, _ in self._steps if node.op != "get_attr" and is_weight(node)}

    def run(self, inputs: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Run on each of several inputs, node by node, so that a weight is read once for all of them.

        Args:
            inputs: tensors by I/O name; float32, or int32 for ids.

        Returns:
            The outputs by I/O name, for each of the inputs.
        """
        with torch.no_grad():
            values = {node: [self._observed(node, x[name]) for x in inputs] for name, node in self._inputs.items()}
            for node, dead in self._steps:
                values[node] = self._compute(node, values, len(inputs))
                for unused in dead:
                    del values[unused]
        return [{name: values[node][i] for name, node in self._outputs.items()} for i in range(len(inputs))]

    def _compute(self, node: fx.Node, values: Mapping[fx.Node, list[Any]], count: int) -> list[Any]:
        if node.op == "get_attr":
            return [self.weights.read(str(node.target))] * count
        if node in self._shared:  # computed from weights alone
            return [_call(node, values, 0)] * count
        return [self._observed(node, _call(node, values, i)) for i in range(count)]

    def _observed(self, node: fx.Node, value: Any) -> Any:
        """The value as the nodes after it see it: shown to the observer, then fake-quantized."""
        if not isinstance(value, Tensor) or not value.is_floating_point():  # ids, and an op with many results
            return value
        if self.observer is not None:
            self.observer(node, value)
        encoding = self.encodings.values.get(name_of(node)) if self.encodings is not None else None
        return value if encoding is None else encoding.fake_quantize(value)


def _call(node: fx.Node, values: Mapping[fx.Node, list[Any]], i: int) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n][i])
    run: Any = _convolve if node.target is aten.conv2d.default else node.target
    return run(*args, **kwargs)


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
