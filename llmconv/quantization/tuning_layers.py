"""Train scales and norms a layer after the other, each toward what it gives in the float model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from llmconv.decoding.torch_runner import HostInputs
from llmconv.encodings.grid import Encoded
from llmconv.graph.model import Graph, inputs_of, io_of, name_of, outputs_of
from llmconv.quantization.segments import segments
from llmconv.quantization.stored_values import StoredValues
from llmconv.quantization.student import GradientInterpreter, Progress, Student, divergence
from llmconv.weights.derived import Derived
from llmconv.weights.expressions import Held
from llmconv.weights.held import HeldStore
from llmconv.weights.store import WeightStore

PASSED_ON = ("hidden", "logits")  # kinds of what a part gives that are trained toward

Work = Callable[[], dict[str, Encoded]]


def _do(_number: int, work: Work) -> dict[str, Encoded]:
    return work()


def tune_layers(
    graph: Graph,
    weights: WeightStore,
    quantized: Mapping[str, Encoded],
    samples: Sequence[Sequence[int]],
    steps: int,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress = lambda _step, _loss: None,
    once: Callable[[int, Work], dict[str, Encoded]] = _do,
) -> dict[str, Encoded]:
    """As `tune`, a piece of a part after the other: attention or MLP, to where the residual stream alone goes on.

    A piece takes what the tuned ones before it give, and is trained toward what it gives in the float model on what
    those before it give there: by the share of the squared error, logits by their divergence. Holds one piece's weights
    twice and the values of one sample; those of all samples between pieces lie on disk.

    Args:
        folder: for these.
        progress: called with each step, counted within its piece, and its loss.
        once: trains a piece by its number, or gives what came of it in an earlier run.

    Raises:
        PassError: a loss is not finite.
    """
    own, exact = (StoredValues(_made(folder / name), len(samples)) for name in ("own", "float"))
    host, numbers, found = HostInputs(graph), count(), dict[str, Encoded]()
    for part in graph.parts:
        given, io = outputs_of(part), io_of(part)[1]
        hidden, logits = ({name_of(node): n for n, node in given.items() if io[n].kind == kind} for kind in PASSED_ON)
        pieces = segments(part, gives=PASSED_ON)
        for i, module in enumerate(pieces):
            piece = _Piece(module, host, samples, HeldStore(weights, limit=1 << 62), quantized, logits)
            later = set(hidden).union(*(inputs_of(following) for following in pieces[i + 1 :]))
            if later:
                piece.pass_through({}, exact)
            train = partial(piece.trained, found, steps, seed, progress, own, exact, stored=bool(later))
            found |= once(next(numbers), train)
            if later:
                piece.pass_through(found, own)
            for values in (own, exact):
                values.finish(later)
        for name, io_name in hidden.items():
            for values in (own, exact):
                values.move(name, io_name)
    return found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@dataclass(frozen=True)
class _Piece:
    """A piece of a part, and what it is given.

    Attributes:
        weights: the float model's; each is read once.
        quantized: the whole model's.
        logits: names of those that its part gives.
    """

    module: fx.GraphModule
    host: HostInputs
    samples: Sequence[Sequence[int]]
    weights: WeightStore
    quantized: Mapping[str, Encoded]
    logits: Collection[str]

    def pass_through(self, tuned: Mapping[str, Encoded], values: StoredValues) -> None:
        """Run every sample, with what is tuned in place of float weights, from what is stored to what is stored."""
        run = GradientInterpreter(self.module, self._with(tuned).read)
        with torch.no_grad():
            for i in range(len(self.samples)):
                values.add(self._run(run, i, values))
        values.close()

    def trained(
        self,
        tuned: Mapping[str, Encoded],
        steps: int,
        seed: int,
        progress: Progress,
        own: StoredValues,
        exact: StoredValues,
        *,
        stored: bool,
    ) -> dict[str, Encoded]:
        """What comes of those of its weights and norms that no piece before has tuned.

        Args:
            stored: whether `exact` has what the piece gives in the float model, and not only what it is given.
        """
        left = {name: self.quantized[name] for name in self._names if name in self.quantized and name not in tuned}
        student = Student([self.module], self._with(tuned), left, fixed=tuned)
        if not student.learns:
            return {}

        def loss(sample: int) -> Tensor:
            found, total = self._run(student.interpreter(self.module), sample, own), torch.zeros(())
            with torch.no_grad():
                teacher = GradientInterpreter(self.module, self.weights.read)
                aims = {} if stored else self._run(teacher, sample, exact)
            for name, value in found.items():
                aim = exact.read(name, sample) if stored else aims[name]
                if name in self.logits:
                    total = total + divergence(value, aim)
                elif value.requires_grad:
                    total = total + (value - aim).square().sum() / aim.square().sum()
            return total

        where = f" of what gives '{next(iter(outputs_of(self.module)))}'"
        student.train(steps, len(self.samples), loss, seed, progress, where)
        return student.encoded()

    @property
    def _names(self) -> list[str]:
        """Of its weights."""
        return list(dict.fromkeys(str(n.target) for n in self.module.graph.nodes if n.op == "get_attr"))

    def _with(self, tuned: Mapping[str, Encoded]) -> WeightStore:
        """The weights, with what is tuned in place of float ones."""
        return Derived(self.weights, {n: Held(tuned[n].dequantize()) for n in self._names if n in tuned})

    def _run(self, interpreter: fx.Interpreter, sample: int, values: StoredValues) -> dict[str, Tensor]:
        given = self.host.of(self.samples[sample])
        inputs = (given[n] if n in given else values.read(n, sample) for n in inputs_of(self.module))
        found: dict[str, Any] = interpreter.run(*inputs, enable_io_processing=False)
        return found
