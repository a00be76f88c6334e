"""Train the scales of quantized weights, and the norms between them, toward the float model; integers stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from llmconv.decoding.torch_runner import HostInputs
from llmconv.encodings.grid import Encoded, Grid
from llmconv.encodings.value import WeightEncoding
from llmconv.errors import PassError
from llmconv.graph.model import Graph, Model, aten, inputs_of, io_of, name_of
from llmconv.passes.context import PassContext
from llmconv.quantization.calibration import CALIBRATION
from llmconv.quantization.encoded_tensors import quantized_of, tensors_of
from llmconv.quantization.kept import step_key
from llmconv.quantization.moments import Moments
from llmconv.quantization.nearest import nearest
from llmconv.quantization.quantizer import Quantizer
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
    *,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda _step, _loss: None,
) -> dict[str, Encoded]:
    """The same integers on other scales, and the model's norms: what lowers the divergence from the float model.

    Holds the model in memory, some four times its float32 weights.

    Args:
        graph: without past, `ar` = `context` = length of a sample.
        weights: the float model's.
        quantized: of every weight that is to be tuned.
        samples: of which each step takes two.
        progress: called with each step and its mean divergence, nats a token.

    Raises:
        PassError: the divergence is not finite.
    """
    student, teacher = _Tuned(graph, weights, quantized), _Float(weights)
    inputs, generator = HostInputs(graph), torch.Generator().manual_seed(seed)
    groups = [{"params": student.shifts, "lr": SCALES}, {"params": list(student.norms.values()), "lr": NORMS}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / WARM_UP, 1 - i / steps))
    for step, chosen in enumerate(_batches(len(samples), steps, generator)):
        total = 0.0
        for i in chosen:
            given = inputs.of(samples[i])
            with torch.no_grad():
                expected = _logits(graph, given, teacher).log_softmax(dim=-1)
            found = _logits(graph, given, student).log_softmax(dim=-1)
            loss = (expected.exp() * (expected - found)).sum(dim=-1).mean() / len(chosen)
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
        alone = replace(context, sink=None, steps=None)
        _, quantized = calibrate(model, alone, dict(weights), quantizers)
        if not quantized:
            raise PassError("tuning starts from what a quantizer made of calibration text; nearest has looked at none")
        held = HeldStore(model.weights, limit=1 << 62)
        return tune(graph, held, quantized, context.samples, steps)

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


def _logits(graph: Graph, given: Mapping[str, Tensor], weights: Callable[[str], Tensor]) -> Tensor:
    values: dict[str, Any] = dict(given)
    for part in graph.parts:
        run = _Interpreter(part, weights).run
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


@dataclass(frozen=True)
class _Float:
    store: WeightStore

    def __call__(self, name: str) -> Tensor:
        return self.store.read(name)


class _Tuned:
    """The quantized weights as functions of what is trained."""

    def __init__(self, graph: Graph, weights: WeightStore, quantized: Mapping[str, Encoded]) -> None:
        self._store, self._quantized = weights, quantized
        self._shifts = {name: torch.zeros_like(e.scale, requires_grad=True) for name, e in quantized.items()}
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

    def __call__(self, name: str) -> Tensor:
        if name in self.norms:
            return self.norms[name]
        if name not in self._quantized:
            return self._store.read(name)
        known, shift = self._quantized[name], self._shifts[name]
        scale: Tensor = known.scale * shift.exp()
        return replace(known, scale=torch.ones_like(known.scale)).dequantize() * scale[:, None]

    def encoded(self) -> dict[str, Encoded]:
        """What came of it, norms rounded to nearest."""
        found = {
            name: replace(known, scale=(known.scale * self._shifts[name].detach().exp()))
            for name, known in self._quantized.items()
        }
        return found | {name: nearest(norm.detach(), WeightEncoding(16)) for name, norm in self.norms.items()}
