"""Train scales and norms a layer after the other, each toward what it gives in the float model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
) -> dict[str, Encoded]:
    """As `tune`, a piece of a part after the other: attention or MLP, to where the residual stream alone goes on.

    A piece takes what the tuned ones before it give, and is trained toward what it gives in the float model on what
    those before it give there: by the share of the squared error, logits by their divergence. Holds one piece's weights
    twice and the values of one sample; those of all samples between pieces lie on disk.

    Args:
        folder: for these.
        progress: called with each step, counted within its piece, and its loss.

    Raises:
        PassError: a loss is not finite.
    """
    own, exact = (StoredValues(_made(folder / name), len(samples)) for name in ("own", "float"))
    host, found = HostInputs(graph), dict[str, Encoded]()
    for part in graph.parts:
        given_on = {io_name: name_of(node) for io_name, node in outputs_of(part).items()}
        kinds = {name: io_of(part)[1][io_name].kind for io_name, name in given_on.items()}
        pieces = segments(part, gives=PASSED_ON)
        for i, module in enumerate(pieces):
            names = list(dict.fromkeys(str(n.target) for n in module.graph.nodes if n.op == "get_attr"))
            tuned = {name: Held(found[name].dequantize()) for name in names if name in found}  # by a piece before
            store = HeldStore(Derived(weights, tuned), limit=1 << 62)
            left = {name: quantized[name] for name in names if name in quantized and name not in found}
            student = Student([module], store, left, fixed=tuned)
            teacher = GradientInterpreter(module, (HeldStore(weights, limit=1 << 62) if tuned else store).read)
            later = {name for following in pieces[i + 1 :] for name in inputs_of(following)}
            later |= {name for name, kind in kinds.items() if kind == "hidden"}
            piece = _Piece(module, host, samples, {name for name, kind in kinds.items() if kind == "logits"})
            if later:
                piece.pass_through(teacher, exact)
            if student.learns:
                loss = piece.loss(student.interpreter(module), own, None if later else teacher, exact)
                where = f" of what gives '{next(iter(outputs_of(module)))}'"
                student.train(steps, len(samples), loss, seed, progress, where)
                found |= student.encoded()
            if later:
                piece.pass_through(student.interpreter(module), own)
            for stored in (own, exact):
                stored.finish(later)
        for io_name, name in given_on.items():
            if kinds[name] == "hidden":
                for stored in (own, exact):
                    stored.move(name, io_name)
    return found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@dataclass(frozen=True)
class _Piece:
    """A piece of a part, and what it is given.

    Attributes:
        logits: names of what it gives that is these.
    """

    module: fx.GraphModule
    host: HostInputs
    samples: Sequence[Sequence[int]]
    logits: set[str]

    def pass_through(self, interpreter: fx.Interpreter, stored: StoredValues) -> None:
        """Run every sample, from what is stored to what is stored."""
        with torch.no_grad():
            for i in range(len(self.samples)):
                stored.add(self._run(interpreter, i, stored))
        stored.close()

    def loss(
        self, student: fx.Interpreter, own: StoredValues, teacher: fx.Interpreter | None, exact: StoredValues
    ) -> Callable[[int], Tensor]:
        """How far what it gives for a sample is from what the float model gives.

        Args:
            teacher: computes that; None where it is stored.
        """

        def of(sample: int) -> Tensor:
            found, total = self._run(student, sample, own), torch.zeros(())
            with torch.no_grad():
                aims = (
                    {n: exact.read(n, sample) for n in found} if teacher is None else self._run(teacher, sample, exact)
                )
            for name, value in found.items():
                if name in self.logits:
                    total = total + divergence(value, aims[name])
                elif value.requires_grad:
                    total = total + (value - aims[name]).square().sum() / aims[name].square().sum()
            return total

        return of

    def _run(self, interpreter: fx.Interpreter, sample: int, stored: StoredValues) -> dict[str, Tensor]:
        given = self.host.of(self.samples[sample])
        inputs = (given[n] if n in given else stored.read(n, sample) for n in inputs_of(self.module))
        found: dict[str, Any] = interpreter.run(*inputs, enable_io_processing=False)
        return found
