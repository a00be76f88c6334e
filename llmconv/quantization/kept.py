"""What a calibration keeps for a run that goes on: finished parts, and inside the next one the pieces that have run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from llmconv.encodings.grid import Encoded
from llmconv.encodings.value import WeightEncoding
from llmconv.files import digest, link
from llmconv.graph.model import Model
from llmconv.graph.signature import signature
from llmconv.passes.context import PassContext, WeightWriter
from llmconv.quantization.calibration import CALIBRATION, Calibration, Done, Range
from llmconv.quantization.encoded_tensors import quantized_of, tensors_of
from llmconv.quantization.magnitudes import Magnitudes
from llmconv.quantization.quantizer import Quantizer
from llmconv.weights.derived import tables_of

RECORDED = 20.0  # seconds of work after which a piece is recorded


def step_key(
    model: Model,
    context: PassContext,
    weights: Mapping[str, WeightEncoding],
    quantizers: Mapping[str, Quantizer],
    **more: Any,
) -> str:
    """The key of a step that depends on the samples, the weights and what is to become of them, and on `more`.

    Of the graphs on the one for calibration alone, which is the same whatever context the recipe's graphs see.
    """
    assert context.steps is not None
    rules = {name: [how.bits, how.block, repr(quantizers.get(name))] for name, how in weights.items()}
    graph = signature(model.graphs[CALIBRATION])
    return context.steps.key(
        graphs=graph, samples=context.samples, rules=rules, tables=tables_of(model.weights), **more
    )


@dataclass
class Kept:
    """What is kept of each part: ranges and sizes of values, its weight file, and what it gives to the next part.

    Where no sink makes a weight file, what quantizers have made of the part's weights.
    """

    model: Model
    context: PassContext
    weights: dict[str, WeightEncoding]
    quantizers: Mapping[str, Quantizer]
    magnitudes: Magnitudes
    key: str = field(init=False)
    _recorded: float = field(default=0.0, init=False)  # when a piece was, in seconds
    _waiting: dict[str, Encoded] = field(default_factory=dict, init=False)  # what pieces have made since then
    _steps: list[str] = field(default_factory=list, init=False)  # that hold what pieces before made
    _at: int | None = field(default=None, init=False)  # the piece that was recorded

    def __post_init__(self) -> None:
        self.parts = self.model.graphs[CALIBRATION].parts
        self.count = len(self.parts)
        if self.context.steps is not None:
            self.key = step_key(
                self.model, self.context, self.weights, self.quantizers, magnitudes=self.magnitudes.names
            )

    def resume(self, calibration: Calibration, ranges: dict[str, Range], quantized: dict[str, Encoded]) -> int:
        """Take over finished parts, from the first on; gives the number of the first part that is left."""
        steps, sink = self.context.steps, self.context.sink
        if steps is None:
            return 0
        asked = [steps.finished(self._step(i), self.key) for i in range(self.count)]  # all: what does not hold goes
        records: list[Any] = list(takewhile(bool, asked))
        if records and len(records) < self.count:
            last = len(records) - 1
            if not steps.finished(self._border_step(last), self.key):
                return 0
            calibration.skip(self.parts[last], self._border_files(last, calibration))
        for i, record in enumerate(records):
            if sink is None:
                quantized |= self._quantized_of(load_file(self._weights_file(self._step(i))))
            else:
                sink.restore(i, self.count, record["weights"])
            ranges |= {name: (low, high) for name, (low, high) in record["ranges"].items()}
            self.context.hashes.update(record["hashes"])
            self.magnitudes.update(record["magnitudes"])
        return len(records)

    def finish(
        self,
        part: int,
        pieces: int,
        ranges: dict[str, Range],
        calibration: Calibration,
        quantized: Mapping[str, Encoded],
    ) -> Mapping[str, Encoded]:
        """Record a part that has run, its border first: a part that is finished can be gone on from.

        Args:
            quantized: of its weights, those that no file has taken.

        Returns:
            The same; where they lie on disk now, read from there when they are asked for.
        """
        hashes = {name: sha for name, sha in self.context.hashed().items() if name not in self.context.hashes}
        self.context.hashes.update(hashes)
        steps = self.context.steps
        if steps is None:
            return quantized
        if border := self._border_files(part, calibration):
            calibration.keep(self.parts[part], border)
            steps.finish(self._border_step(part), self.key, border, True)
        files, weights = self._written(part, quantized)
        value = {"ranges": ranges, "magnitudes": self.magnitudes.to_dict(), "weights": weights, "hashes": hashes}
        steps.finish(self._step(part), self.key, list(files), value, known=files)
        self._forget_pieces(part, pieces)
        return self._quantized_of(load_file(next(iter(files)))) if self.context.sink is None else quantized

    def resume_pieces(
        self, part: int, pieces: Sequence[fx.GraphModule], calibration: Calibration, store: WeightWriter
    ) -> tuple[int, dict[str, Range]]:
        """Take over what an earlier run has recorded of a part; gives the piece to go on with, and ranges so far."""
        self._recorded, self._waiting, self._steps, self._at = time.monotonic(), {}, [], None
        steps = self.context.steps
        if steps is None:
            return 0, {}
        found = [i for i in range(len(pieces) - 1) if steps.finished(self._piece_step(part, i), self.key)]
        if not found:
            return 0, {}
        record = steps.finished(self._piece_step(part, found[-1]), self.key)
        if not all(steps.finished(step, self.key) for step in record["weights"]):
            return 0, {}
        self._steps = list(record["weights"])
        tensors = {name: x for step in self._steps for name, x in load_file(self._weights_file(step)).items()}
        calibration.skip_pieces(pieces[: found[-1] + 1], store, self._quantized_of(tensors))
        for stream, name, file, strides in record["values"]:
            calibration.streams[stream].open(name, steps.folder / file, strides)
        self.magnitudes.update(record["magnitudes"])
        self._at = found[-1]
        return found[-1] + 1, {name: (low, high) for name, (low, high) in record["ranges"].items()}

    def finish_piece(self, part: int, done: Done, calibration: Calibration) -> None:
        """Record a piece that has run, unless one was just now: a kill costs that long and the piece that runs."""
        steps = self.context.steps
        if steps is None:
            return
        self._waiting |= done.quantized
        if time.monotonic() - self._recorded < RECORDED:
            return
        made = self._weights_step(part, done.number)
        save_file(tensors_of(self._waiting), self._weights_file(made))
        steps.finish(made, self.key, [self._weights_file(made)], True)
        self._steps.append(made)
        values: list[Any] = []
        files: list[Path] = []
        for i, stored in enumerate(calibration.streams):
            for name, path, strides in stored.snapshot():
                files.append(steps.scratch(f"piece_{part + 1}_{done.number + 1}_{len(files)}.npy"))
                link(path, files[-1])
                values.append((i, name, files[-1].relative_to(steps.folder).as_posix(), strides))
        record = {
            "values": values,
            "ranges": done.ranges,
            "magnitudes": self.magnitudes.to_dict(),
            "weights": self._steps,
        }
        steps.finish(self._piece_step(part, done.number), self.key, files, record)
        if self._at is not None:
            steps.forget(self._piece_step(part, self._at))
        self._recorded, self._waiting, self._at = time.monotonic(), {}, done.number

    def _written(self, part: int, quantized: Mapping[str, Encoded]) -> tuple[Mapping[Path, str], Any]:
        """A part's weights on disk: the files with sha256, and as JSON what lies where in them."""
        if self.context.sink is not None:
            return self.context.sink.written(part)
        file = self._weights_file(self._step(part))
        save_file(tensors_of(quantized), file)
        return {file: digest(file)}, None

    def _quantized_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Encoded]:
        return quantized_of(tensors, {name: how.grid for name, how in self.weights.items()})

    def _forget_pieces(self, part: int, pieces: int) -> None:
        for i in range(pieces):
            self.context.steps.forget(self._piece_step(part, i))  # type: ignore[union-attr]
            self.context.steps.forget(self._weights_step(part, i))  # type: ignore[union-attr]

    def _piece_step(self, part: int, piece: int) -> str:
        return f"{self._step(part)}_piece_{piece + 1}"

    def _weights_step(self, part: int, piece: int) -> str:
        return f"{self._piece_step(part, piece)}_weights"

    def _weights_file(self, step: str) -> Path:
        assert self.context.steps is not None
        return self.context.steps.scratch(f"{step}.safetensors")

    def forget_borders(self) -> None:
        """All parts are finished, and nothing will go on from between them."""
        for part in range(self.count) if self.context.steps is not None else ():
            self.context.steps.forget(self._border_step(part))  # type: ignore[union-attr]

    def _border_files(self, part: int, calibration: Calibration) -> list[Path]:
        assert self.context.steps is not None
        count = calibration.outgoing(self.parts[part])
        return [self.context.steps.scratch(f"border_{part + 1}_{i}.npy") for i in range(count)]

    def _step(self, part: int) -> str:
        return f"calibrate_{part + 1}_of_{self.count}"

    def _border_step(self, part: int) -> str:
        return f"border_{part + 1}_of_{self.count}"
