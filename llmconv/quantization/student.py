"""A quantized model, or a piece of one, whose row scales and norms are trained while its integers stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, fx

from llmconv.cores import side_by_side
from llmconv.encodings.grid import Encoded
from llmconv.encodings.value import WeightEncoding
from llmconv.errors import PassError
from llmconv.graph.model import aten, name_of
from llmconv.graph.ops import uses_of
from llmconv.quantization.linears import CHANNELS
from llmconv.quantization.nearest import nearest
from llmconv.weights.store import WeightStore

SCALES, NORMS = 1.5e-3, 1e-3  # learning rates, of logarithms of scales and of norms
WARM_UP = 5  # steps
WINDOWS = 2  # a step, side by side
CLIPPED = 1.0  # what is longer of a gradient

Progress = Callable[[int, float], None]  # of a step and its mean loss


class Student:
    """The quantized weights, as they were, and what is trained: factors of their rows, and norms.

    Args:
        parts: all that runs.
        weights: the float model's.
        quantized: of every weight whose scales are trained; linears alone read them.
        fixed: norms that stay as they are.
    """

    def __init__(
        self,
        parts: Sequence[fx.GraphModule],
        weights: WeightStore,
        quantized: Mapping[str, Encoded],
        fixed: Collection[str] = (),
    ) -> None:
        self._store, self._quantized = weights, quantized
        self._known = {name: encoded.dequantize() for name, encoded in quantized.items()}
        self._shifts = {name: torch.zeros_like(e.scale, requires_grad=True) for name, e in quantized.items()}
        self._rows = {node: found for part in parts for node, found in _rows_of_linears(part, self._known)}
        norms = {
            name_of(node.args[2])
            for part in parts
            for node in part.graph.find_nodes(op="call_function", target=aten.rms_norm.default)
            if len(node.args) > 2 and isinstance(node.args[2], fx.Node)
        }
        self._norms = {name: weights.read(name).clone().requires_grad_() for name in sorted(norms.difference(fixed))}

    def train(
        self, steps: int, samples: int, loss: Callable[[int], Tensor], seed: int, progress: Progress, where: str = ""
    ) -> None:
        """Take steps of some samples each, toward a smaller loss.

        Args:
            samples: how many there are.
            loss: of a sample by its number; two of them are computed at once.
            where: for the error, what of the model is trained.

        Raises:
            PassError: a loss is not finite.
        """
        shifts, norms = list(self._shifts.values()), list(self._norms.values())
        optimizer = torch.optim.AdamW(
            [{"params": shifts, "lr": SCALES}, {"params": norms, "lr": NORMS}], weight_decay=0.0
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / WARM_UP, 1 - i / steps))
        for step, chosen in enumerate(batches(samples, steps, seed)):
            total = _descend([*shifts, *norms], loss, chosen)
            steepness = float(torch.nn.utils.clip_grad_norm_([*shifts, *norms], CLIPPED))
            if not isfinite(total + steepness):
                raise PassError(f"tuning diverges at step {step}{where}; leave it out with tuning_steps = 0")
            optimizer.step()
            schedule.step()
            progress(step, total)

    @property
    def learns(self) -> bool:
        """Whether it has anything to train."""
        return bool(self._shifts or self._norms)

    def interpreter(self, part: fx.GraphModule) -> fx.Interpreter:
        """What runs a part with them."""
        return _StudentInterpreter(part, self)

    def factors(self, node: fx.Node) -> Tensor | None:
        """What each channel that a linear gives is multiplied with; None of other nodes."""
        if node not in self._rows:
            return None
        name, rows = self._rows[node]
        return self._shifts[name][rows].exp()

    def read(self, name: str) -> Tensor:
        """A weight, its scales untrained."""
        if name in self._norms:
            return self._norms[name]
        return self._known[name] if name in self._known else self._store.read(name)

    def encoded(self) -> dict[str, Encoded]:
        """What came of it, norms rounded to nearest."""
        found = {
            name: replace(known, scale=(known.scale * self._shifts[name].detach().exp()))
            for name, known in self._quantized.items()
        }
        return found | {name: nearest(norm.detach(), WeightEncoding(16)) for name, norm in self._norms.items()}


def batches(samples: int, steps: int, seed: int) -> Iterator[list[int]]:
    """The numbers of the samples of each step, all of them in turn and shuffled anew."""
    generator, order = torch.Generator().manual_seed(seed), list[int]()
    for _ in range(steps):
        while len(order) < WINDOWS:
            order += torch.randperm(samples, generator=generator).tolist()
        yield [order.pop(0) for _ in range(WINDOWS)]


def _descend(trained: Sequence[Tensor], loss: Callable[[int], Tensor], pair: Sequence[int]) -> float:
    """Give what is trained the gradients of two samples' mean loss, which is returned; as they are added in order."""
    found: dict[int, tuple[float, Sequence[Tensor | None]]] = {}

    def differentiate(place: int) -> None:
        mean = loss(pair[place]) / len(pair)
        # nothing that is trained may lead to it
        slopes = torch.autograd.grad(mean, trained, allow_unused=True) if mean.requires_grad else [None] * len(trained)
        found[place] = float(mean.detach()), slopes

    side_by_side(lambda: differentiate(0), lambda _over: differentiate(1))
    (first, slopes), (second, others) = (found[place] for place in range(len(pair)))
    for value, slope, other in zip(trained, slopes, others, strict=True):
        value.grad = other if slope is None else slope if other is None else slope + other
    return first + second


def divergence(found: Tensor, aim: Tensor) -> Tensor:
    """Of logits from those that they should be, Kullback-Leibler, nats a token."""
    known = aim.flatten(0, -2).log_softmax(dim=-1)
    return (known.exp() * (known - found.flatten(0, -2).log_softmax(dim=-1))).sum(dim=-1).mean()


class GradientInterpreter(fx.Interpreter):
    """Runs a part so that gradients flow; weights come from a function."""

    def __init__(self, part: fx.GraphModule, weights: Callable[[str], Tensor]) -> None:
        super().__init__(part)
        self._weights = weights

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        """A weight."""
        return self._weights(str(target))


class _StudentInterpreter(GradientInterpreter):
    """Scales what linears give in place of their weights' rows: no gradient is as large as a weight then."""

    def __init__(self, part: fx.GraphModule, student: Student) -> None:
        super().__init__(part, student.read)
        self._student = student

    def run_node(self, n: fx.Node) -> Any:
        factors = self._student.factors(n)
        if factors is None:
            return super().run_node(n)
        (x, weight, *rest), _ = self.fetch_args_kwargs_from_env(n)
        bias, *others = rest or [None]
        shape = [1] * x.ndim
        shape[CHANNELS[n.target]] = -1  # type: ignore[index]
        found = n.target(x, weight, None, *others) * factors.reshape(shape)  # type: ignore[operator]
        return found if bias is None else found + bias.reshape(shape)


def _rows_of_linears(
    part: fx.GraphModule, weights: Mapping[str, Tensor]
) -> Iterator[tuple[fx.Node, tuple[str, Tensor]]]:
    """Each linear that reads some of the weights, with its weight's name and the row of each channel that it gives."""
    for weight in part.graph.find_nodes(op="get_attr"):
        if (name := name_of(weight)) in weights:
            numbers = torch.arange(len(weights[name]), dtype=torch.int32)[:, None].expand(weights[name].shape)
            for linear, operand in uses_of(weight):
                yield linear, (name, _moved(operand, numbers.contiguous()).flatten(1)[:, 0].clone())


def _moved(node: fx.Node, weight: Tensor) -> Tensor:
    """A weight at the end of the movement that leads to a node."""
    if node.op == "get_attr":
        return weight
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _moved(n, weight))
    return node.target(*args, **kwargs)  # type: ignore[no-any-return, operator]
