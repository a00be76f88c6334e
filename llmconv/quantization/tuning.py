"""Train the scales of quantized weights, and the norms between them, toward the float model; integers stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from llmconv.decoding.torch_runner import HostInputs
from llmconv.encodings.grid import Encoded, Grid
from llmconv.encodings.value import WeightEncoding
from llmconv.errors import PassError
from llmconv.graph.model import Graph, Model, aten, inputs_of, io_of, name_of
from llmconv.graph.ops import uses_of
from llmconv.passes.context import PassContext
from llmconv.quantization.calibration import CALIBRATION
from llmconv.quantization.encoded_tensors import quantized_of, tensors_of
from llmconv.quantization.kept import step_key
from llmconv.quantization.linears import CHANNELS
from llmconv.quantization.moments import Moments
from llmconv.quantization.nearest import nearest
from llmconv.quantization.quantizer import Quantizer
from llmconv.quantization.stored_values import StoredValues
from llmconv.quantization.streaming import calibrate
from llmconv.weights.expressions import Held
from llmconv.weights.held import HeldStore
from llmconv.weights.store import WeightStore
from llmconv.work.tensors import tensors_once

SCALES, NORMS = 1.5e-3, 1e-3  # learning rates, of logarithms of scales and of norms
WARM_UP = 5  # steps
WINDOWS = 2  # a step
CLIPPED = 1.0  # what is longer of a gradient


@dataclass(frozen=True)
class Known(Quantizer):
    """What is on its grid already."""

    name: ClassVar[str] = "known"

    encoded: Encoded

    def __repr__(self) -> str:
        """With all of its numbers, since steps are known by it."""
        tensors = tensors_of({self.name: self.encoded})
        return f"Known({', '.join(f'{name}: {Held(x)}' for name, x in tensors.items())})"

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        """As it is."""
        return self.encoded


def tune(
    graph: Graph,
    weights: WeightStore,
    quantized: Mapping[str, Encoded],
    samples: Sequence[Sequence[int]],
    steps: int,
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda _step, _loss: None,
) -> dict[str, Encoded]:
    """The same integers on other scales, and the model's norms: what lowers the divergence from the float model.

    Holds the model in memory twice, as it is and as it is quantized, and the values of one sample.

    Args:
        graph: without past, `ar` = `context` = length of a sample.
        weights: the float model's.
        quantized: of every weight that is to be tuned; linears alone read them.
        samples: of which each step takes two.
        folder: for the float model's logits on every sample.
        progress: called with each step and its mean divergence, nats a token.

    Raises:
        PassError: the divergence is not finite.
    """
    student, inputs = _Tuned(graph, weights, quantized), HostInputs(graph)
    batches = list(_batches(len(samples), steps, torch.Generator().manual_seed(seed)))
    expected = _expected(graph, weights, samples, {i for chosen in batches for i in chosen}, folder)
    groups = [{"params": student.shifts, "lr": SCALES}, {"params": list(student.norms.values()), "lr": NORMS}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / WARM_UP, 1 - i / steps))
    for step, chosen in enumerate(batches):
        total = 0.0
        for i in chosen:
            found = _logits(graph, inputs.of(samples[i]), student.interpreter).log_softmax(dim=-1)
            aim = expected(i).log_softmax(dim=-1)
            loss = (aim.exp() * (aim - found)).sum(dim=-1).mean() / len(chosen)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        steepness = float(torch.nn.utils.clip_grad_norm_(student.trained, CLIPPED))
        if not isfinite(total + steepness):
            raise PassError(f"tuning diverges at step {step}; leave it out with tuning_steps = 0")
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress(step, total)
    return student.encoded()


def tuned_once(
    model: Model,
    context: PassContext,
    weights: Mapping[str, WeightEncoding],
    quantizers: Mapping[str, Quantizer],
    steps: int,
) -> dict[str, Encoded]:
    """Quantize a model in memory and tune it, unless an earlier run of the same has done so.

    Raises:
        PassError: no quantizer but `nearest` is asked for; or as of `tune`.
    """
    graph = model.graphs[CALIBRATION]

    def work() -> dict[str, Encoded]:
        alone = replace(context, sink=None, hashes={})  # those of the files belong to the steps that write them
        _, quantized = calibrate(model, alone, dict(weights), quantizers)
        if not quantized:
            raise PassError("tuning starts from what a quantizer made of calibration text; nearest has looked at none")
        held = HeldStore(model.weights, limit=1 << 62)
        with context.scratch() as folder:
            return tune(graph, held, quantized, context.samples, steps, folder)

    if context.steps is None:
        return work()
    key = step_key(model, context, weights, quantizers, tuning=steps)
    kept = tensors_once(context.steps, "tune", key, lambda: tensors_of(work()))
    return quantized_of(kept, {name: how.grid for name, how in weights.items()})


def _batches(count: int, steps: int, generator: torch.Generator) -> Iterator[list[int]]:
    order: list[int] = []
    for _ in range(steps):
        while len(order) < WINDOWS:
            order += torch.randperm(count, generator=generator).tolist()
        yield [order.pop(0) for _ in range(WINDOWS)]


def _expected(
    graph: Graph, weights: WeightStore, samples: Sequence[Sequence[int]], wanted: set[int], folder: Path
) -> Callable[[int], Tensor]:
    """The float model's logits on some samples, each computed once and kept on disk."""
    inputs, stored = HostInputs(graph), StoredValues(folder, len(wanted))
    places = {i: place for place, i in enumerate(sorted(wanted))}
    with torch.no_grad():
        for i in places:
            stored.add({"logits": _logits(graph, inputs.of(samples[i]), lambda part: _Interpreter(part, weights.read))})
    stored.finish(["logits"])
    return lambda i: stored.read("logits", places[i])


def _logits(
    graph: Graph, given: Mapping[str, Tensor], interpreter: Callable[[fx.GraphModule], fx.Interpreter]
) -> Tensor:
    values: dict[str, Any] = dict(given)
    for part in graph.parts:
        run = interpreter(part).run
        values |= run(*(values[name] for name in inputs_of(part)), enable_io_processing=False)
    logits: Tensor
    (logits,) = (values[name] for name, io in io_of(graph.parts[-1])[1].items() if io.kind == "logits")
    return logits.reshape(-1, logits.shape[-1])


class _Interpreter(fx.Interpreter):
    """Runs a part so that gradients flow; weights come from a function."""

    def __init__(self, part: fx.GraphModule, weights: Callable[[str], Tensor]) -> None:
        super().__init__(part)
        self._weights = weights

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        return self._weights(str(target))


class _TunedInterpreter(_Interpreter):
    """Scales what linears give in place of their weights' rows: no gradient is as large as a weight then."""

    def __init__(self, part: fx.GraphModule, tuned: _Tuned) -> None:
        super().__init__(part, tuned)
        self._tuned = tuned

    def run_node(self, n: fx.Node) -> Any:
        factors = self._tuned.factors(n)
        if factors is None:
            return super().run_node(n)
        (x, weight, *rest), _ = self.fetch_args_kwargs_from_env(n)
        bias, *others = rest or [None]
        shape = [1] * x.ndim
        shape[CHANNELS[n.target]] = -1  # type: ignore[index]
        found = n.target(x, weight, None, *others) * factors.reshape(shape)  # type: ignore[operator]
        return found if bias is None else found + bias.reshape(shape)


class _Tuned:
    """The quantized weights, as they were, and what is trained: factors of their rows, and norms."""

    def __init__(self, graph: Graph, weights: WeightStore, quantized: Mapping[str, Encoded]) -> None:
        self._store, self._quantized = weights, quantized
        self._known = {name: encoded.dequantize() for name, encoded in quantized.items()}
        self._shifts = {name: torch.zeros_like(e.scale, requires_grad=True) for name, e in quantized.items()}
        self._rows = {node: found for part in graph.parts for node, found in _rows_of_linears(part, self._known)}
        norms = {
            name_of(node.args[2])
            for part in graph.parts
            for node in part.graph.find_nodes(op="call_function", target=aten.rms_norm.default)
            if len(node.args) > 2 and isinstance(node.args[2], fx.Node)
        }
        self.norms = {name: weights.read(name).clone().requires_grad_() for name in sorted(norms)}

    @property
    def trained(self) -> list[Tensor]:
        """All that is trained."""
        return [*self.shifts, *self.norms.values()]

    @property
    def shifts(self) -> list[Tensor]:
        """What is added to the logarithms of scales."""
        return list(self._shifts.values())

    def interpreter(self, part: fx.GraphModule) -> fx.Interpreter:
        """What runs a part with them."""
        return _TunedInterpreter(part, self)

    def factors(self, node: fx.Node) -> Tensor | None:
        """What each channel that a linear gives is multiplied with; None of other nodes."""
        if node not in self._rows:
            return None
        name, rows = self._rows[node]
        return self._shifts[name][rows].exp()

    def __call__(self, name: str) -> Tensor:
        if name in self.norms:
            return self.norms[name]
        return self._known[name] if name in self._known else self._store.read(name)

    def encoded(self) -> dict[str, Encoded]:
        """What came of it, norms rounded to nearest."""
        found = {
            name: replace(known, scale=(known.scale * self._shifts[name].detach().exp()))
            for name, known in self._quantized.items()
        }
        return found | {name: nearest(norm.detach(), WeightEncoding(16)) for name, norm in self.norms.items()}


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
