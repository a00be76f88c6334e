"""Train the scales of quantized weights, and the norms between them, toward the float model; integers stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx

from llmconv.decoding.torch_runner import HostInputs
from llmconv.encodings.grid import Encoded
from llmconv.encodings.value import WeightEncoding
from llmconv.errors import PassError
from llmconv.graph.model import Graph, Model, inputs_of, io_of
from llmconv.passes.context import PassContext
from llmconv.quantization.calibration import CALIBRATION
from llmconv.quantization.encoded_tensors import quantized_of, tensors_of
from llmconv.quantization.kept import step_key
from llmconv.quantization.quantizer import Quantizer
from llmconv.quantization.stored_values import StoredValues
from llmconv.quantization.streaming import calibrate
from llmconv.quantization.student import GradientInterpreter, Progress, Student, batches, divergence
from llmconv.quantization.tuning_layers import tune_layers
from llmconv.weights.held import HeldStore
from llmconv.weights.store import WeightStore
from llmconv.work.tensors import tensors_once

Tuned = Literal["model", "layer"]  # what is trained at once


def tune(
    graph: Graph,
    weights: WeightStore,
    quantized: Mapping[str, Encoded],
    samples: Sequence[Sequence[int]],
    steps: int,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress = lambda _step, _loss: None,
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
    held = HeldStore(weights, limit=1 << 62)
    student, inputs = Student(graph.parts, held, quantized), HostInputs(graph)
    wanted = {i for chosen in batches(len(samples), steps, seed) for i in chosen}
    expected = _expected(graph, held, samples, wanted, folder)

    def loss(sample: int) -> Tensor:
        return divergence(_logits(graph, inputs.of(samples[sample]), student.interpreter), expected(sample))

    student.train(steps, len(samples), loss, seed, progress)
    return student.encoded()


def tuned_once(
    model: Model,
    context: PassContext,
    weights: Mapping[str, WeightEncoding],
    quantizers: Mapping[str, Quantizer],
    steps: int,
    tuned: Tuned,
) -> dict[str, Encoded]:
    """Quantize a model in memory and tune it, unless an earlier run of the same has done so.

    Raises:
        PassError: no quantizer but `nearest` is asked for; or as of `tune`.
    """
    graph, grids = model.graphs[CALIBRATION], {name: how.grid for name, how in weights.items()}
    steps_of, key, pieces = context.steps, "", set[str]()
    if steps_of is not None:
        key = step_key(model, context, weights, quantizers, tuning=steps, tuned=tuned)

    def once(name: str, work: Callable[[], dict[str, Encoded]]) -> dict[str, Encoded]:
        if steps_of is None:
            return work()
        made = tensors_once(steps_of, name, key, lambda: tensors_of(work()))
        return quantized_of(made, grids)

    def work() -> dict[str, Encoded]:
        alone = replace(context, sink=None, hashes={})  # those of the files belong to the steps that write them
        _, quantized = calibrate(model, alone, dict(weights), quantizers)
        if not quantized:
            raise PassError("tuning starts from what a quantizer made of calibration text; nearest has looked at none")
        given = (graph, model.weights, quantized, context.samples, steps)
        with context.scratch() as folder:
            if tuned == "model":
                return tune(*given, folder)
            return tune_layers(*given, folder, once=piece)

    def piece(number: int, train: Callable[[], dict[str, Encoded]]) -> dict[str, Encoded]:
        pieces.add(name := f"tune_{number + 1}")
        return once(name, train)

    found = once("tune", work)
    if steps_of is not None:
        for name in pieces:
            steps_of.forget(name)
    return found


def _expected(
    graph: Graph, weights: WeightStore, samples: Sequence[Sequence[int]], wanted: set[int], folder: Path
) -> Callable[[int], Tensor]:
    """The float model's logits on some samples, each computed once and kept on disk."""
    inputs, stored = HostInputs(graph), StoredValues(folder, len(wanted))
    places = {i: place for place, i in enumerate(sorted(wanted))}
    with torch.no_grad():
        for i in places:
            run = _logits(graph, inputs.of(samples[i]), lambda part: GradientInterpreter(part, weights.read))
            stored.add({"logits": run})
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
    return logits
