"""Weights quantized apart from each other, on the float model's inputs: tasks, none of which waits for another."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from llmconv.encodings.grid import Encoded, Grid, PerRow
from llmconv.encodings.value import WeightEncoding
from llmconv.errors import PassError
from llmconv.graph.model import Model
from llmconv.passes.context import PassContext
from llmconv.plugins.frame import plugin_code
from llmconv.quantization.calibration import CALIBRATION, Calibration
from llmconv.quantization.encoded_tensors import quantized_of, tensors_of
from llmconv.quantization.kept import step_key
from llmconv.quantization.known import Known
from llmconv.quantization.linears import linear_inputs
from llmconv.quantization.moments import BYTES_A_PAIR, Moments
from llmconv.quantization.quantizer import Quantizer
from llmconv.quantization.streaming import Keeping
from llmconv.work.steps import Steps
from llmconv.work.task import Outcome, Task

WEIGHT_BYTES = 16  # of a task, for each number of its weights: read, rounded, its scale, what is left of it
UNTOUCHED = Grid(8, PerRow())  # on which numbers stay as they are


def quantized_apart(
    model: Model, context: PassContext, weights: Mapping[str, WeightEncoding], quantizers: Mapping[str, Quantizer]
) -> dict[str, Quantizer]:
    """The quantizers, with what they have made in place of those that look at inputs.

    The float model reads the samples, a part at a time; then the context's workers quantize its weights, those that
    read the same value in one task. Tasks that an earlier run has finished are not done again.

    Raises:
        PassError: as of `Calibration.walk`; or a quantizer fails.
    """
    graph = model.graphs[CALIBRATION]
    grids = {name: how.grid for name, how in weights.items()}
    looking = {name: quantizer for name, quantizer in quantizers.items() if quantizer.needs_inputs}
    with _with_steps(context) as context, context.scratch() as folder:  # noqa: PLR1704  the same, with steps
        assert context.steps is not None
        key = step_key(model, context, weights, quantizers, inputs="float")
        parts = [_tasks(part, i, looking, grids, context.steps, key) for i, part in enumerate(graph.parts)]
        left = {name: task for tasks in parts for task in tasks if not task.done for name in task.quantizers}
        later = {name: _Later(name, task) for name, task in left.items()}
        calibration = Calibration(graph, context.samples, folder, later, dict.fromkeys(later, UNTOUCHED))
        for part, tasks in zip(graph.parts, parts, strict=True):
            if all(task.done for task in left.values()):
                break
            calibration.run(part, _Unwritten(model.weights, {}))
            todo = {apart.task.name: apart for apart in tasks if not apart.done}
            context.workers.run([apart.task for apart in todo.values()], done=partial(_finish, todo))
        made = quantized_of({n: x for tasks in parts for task in tasks for n, x in task.result().items()}, grids)
    return {name: Known(made[name]) if name in made else quantizer for name, quantizer in quantizers.items()}


@contextmanager
def _with_steps(context: PassContext) -> Iterator[PassContext]:
    """The context; one without steps with some of its own, for as long as it takes."""
    if context.steps is not None:
        yield context
        return
    with context.scratch() as folder:
        yield replace(context, steps=Steps(folder, {}))


def _tasks(
    part: fx.GraphModule,
    number: int,
    looking: Mapping[str, Quantizer],
    grids: Mapping[str, Grid],
    steps: Steps,
    key: str,
) -> list[_Apart]:
    """One for all weights that read the same value; one for each that reads several."""
    inputs = linear_inputs(part)
    names = dict.fromkeys(str(n.target) for n in part.graph.nodes if n.op == "get_attr" and str(n.target) in looking)
    by_value: dict[str, list[str]] = {}
    for name in names:
        by_value.setdefault(inputs[name].value if name in inputs else name, []).append(name)
    return [
        _Apart(f"quantize_{number + 1}_{i}", key, steps, {n: looking[n] for n in names}, {n: grids[n] for n in names})
        for i, names in enumerate(by_value.values(), 1)
    ]


@dataclass
class _Apart:
    """What becomes a task once the float model has come to where its weights are.

    Attributes:
        step: its record, which holds what it made.
    """

    step: str
    key: str
    steps: Steps
    quantizers: dict[str, Quantizer]
    grids: dict[str, Grid]
    done: bool = field(init=False)
    task: Task = field(init=False)
    _weights: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.done = bool(self.steps.finished(self.step, self.key))

    @property
    def _made(self) -> Path:
        return self.steps.scratch(f"{self.step}.safetensors")

    @property
    def _given(self) -> Path:
        return self.steps.scratch(f"{self.step}_inputs.safetensors")

    def take(self, name: str, weight: Tensor, inputs: Moments | None) -> None:
        """Take one of its weights; with the last of them all lie on disk, and the task can be done."""
        self._weights[name] = weight
        if len(self._weights) < len(self.quantizers):
            return
        tensors = {f"weight/{name}": weight.contiguous() for name, weight in self._weights.items()}
        tensors |= {} if inputs is None else {f"moments/{name}": x for name, x in inputs.tensors().items()}
        self._weights.clear()
        save_file(tensors, self._given)
        pairs = tensors["moments/own"].numel() if "moments/own" in tensors else 0
        numbers = sum(tensor.numel() for tensor in tensors.values()) - pairs
        given, made = (file.relative_to(self.steps.folder).as_posix() for file in (self._given, self._made))
        self.task = Task(
            f"quantize {', '.join(self.quantizers)}",
            WEIGHT_BYTES * numbers + BYTES_A_PAIR * pairs,
            partial(_quantize, self.quantizers, self.grids, given, made),
            self.steps.folder,
            (given,),
            (made,),
        )

    def finish(self) -> None:
        """The task has been done."""
        self.steps.finish(self.step, self.key, [self._made], True)
        self._given.unlink()
        self.done = True

    def result(self) -> dict[str, Tensor]:
        """Its weights as `tensors_of` gives them, read from disk when they are asked for."""
        return load_file(self._made)


def _finish(tasks: Mapping[str, _Apart], done: Task, _outcome: Outcome) -> None:
    tasks[done.name].finish()


@dataclass(frozen=True)
class _Later(Quantizer):
    """Hands a weight and its inputs on, and leaves the weight as it is."""

    name: ClassVar[str] = "later"
    needs_inputs: ClassVar[bool] = True

    weight: str
    to: _Apart

    @property
    def needs_products(self) -> bool:
        """Where one of those that read the same inputs does."""
        return any(quantizer.needs_products for quantizer in self.to.quantizers.values())

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        """Numbers in place of integers, at a scale of one."""
        self.to.take(self.weight, weight, inputs)
        return Encoded(weight, torch.ones(len(weight)), 0, grid)


class _Unwritten(Keeping):
    """A store whose weights nobody takes."""

    def write(self, name: str, weight: Tensor, encoded: Encoded | None = None) -> None:
        """They come from tasks."""


def _quantize(
    quantizers: Mapping[str, Quantizer],
    grids: Mapping[str, Grid],
    given: str,
    made: str,
    folder: Path,
    stop: threading.Event,
) -> Outcome:
    """A task, wherever it is done."""
    tensors = load_file(folder / given)
    known = {name.partition("/")[2]: x for name, x in tensors.items() if name.startswith("moments/")}
    moments, found = Moments.of(known) if known else None, dict[str, Encoded]()
    for name, quantizer in quantizers.items():
        if stop.is_set():
            raise PassError(f"quantizing '{name}' was stopped")
        with plugin_code(quantizer, f"quantizer '{quantizer.name}' on weight '{name}'"):
            found[name] = quantizer.quantize(tensors[f"weight/{name}"], grids[name], moments)
    (folder / made).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(found), folder / made)
    return Outcome(None)
