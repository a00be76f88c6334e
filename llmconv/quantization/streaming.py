"""Calibration and quantized weights from one read of the checkpoint, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import fx

from llmconv.encodings.grid import Block
from llmconv.encodings.value import WeightEncoding
from llmconv.graph.model import Model, io_of
from llmconv.passes.context import PassContext
from llmconv.quantization.calibration import CALIBRATION, Calibration, Range
from llmconv.quantization.quantizer import encoded_blocks
from llmconv.quantization.segments import segments
from llmconv.weights.derived import tables_of
from llmconv.weights.store import WeightStore


def calibrate(model: Model, context: PassContext, weights: dict[str, WeightEncoding]) -> dict[str, Range]:
    """The range of every value on the context's samples.

    Where the context has a sink, weights are written to it as they are read; where it has steps, parts that an earlier
    run has finished are not run again.
    """
    parts = model.graphs[CALIBRATION].parts
    if context.sink is not None:
        context.sink.weights = model.weights
    kept = _Kept(model, context, weights)
    ranges: dict[str, Range] = {}
    if context.steps is not None:
        context.steps.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=None if context.steps is None else context.steps.folder) as folder:
        calibration = Calibration(model.graphs[CALIBRATION], context.samples, Path(folder))
        start = kept.resume(calibration, ranges)
        for i, part in enumerate(parts[start:], start):
            pieces = segments(part)
            with _reading(model, context, i, pieces, weights) as store:
                found = calibration.run(part, pieces, store)
            kept.finish(i, found, calibration)
            ranges |= found
    kept.forget_borders()
    return ranges


@dataclass
class _Kept:
    """What is kept of each part: its ranges, its weight file, and what it gives to the next part."""

    model: Model
    context: PassContext
    weights: dict[str, WeightEncoding]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.parts = self.model.graphs[CALIBRATION].parts
        self.count = len(self.parts)
        if self.context.steps is not None:
            widths = {name: [w.bits, w.clip] for name, w in self.weights.items()}
            tables = tables_of(self.model.weights)
            self.key = self.context.steps.key(samples=self.context.samples, widths=widths, tables=tables)

    def resume(self, calibration: Calibration, ranges: dict[str, Range]) -> int:
        """Take over finished parts, from the first on; gives the number of the first part that is left."""
        steps, sink = self.context.steps, self.context.sink
        if steps is None or sink is None:
            return 0
        records: list[Any] = []
        while len(records) < self.count and (record := steps.finished(self._step(len(records)), self.key)):
            records.append(record)
        if records and len(records) < self.count:
            last = len(records) - 1
            if not steps.finished(self._border_step(last), self.key):
                return 0
            calibration.skip(self.parts[last], self._border_files(last))
        for i, record in enumerate(records):
            sink.restore(i, self.count, record["weights"])
            ranges |= {name: (low, high) for name, (low, high) in record["ranges"].items()}
            self.context.hashes.update(record["hashes"])
        return len(records)

    def finish(self, part: int, ranges: dict[str, Range], calibration: Calibration) -> None:
        """Record a part that has run, its border first: a part that is finished can be gone on from."""
        hashes = {name: sha for name, sha in self.context.hashed().items() if name not in self.context.hashes}
        self.context.hashes.update(hashes)
        steps, sink = self.context.steps, self.context.sink
        if steps is None or sink is None:
            return
        if border := self._border_files(part):
            calibration.keep(self.parts[part], border)
            steps.finish(self._border_step(part), self.key, border, True)
        files, weights = sink.written(part)
        value = {"ranges": ranges, "weights": weights, "hashes": hashes}
        steps.finish(self._step(part), self.key, list(files), value, known=files)

    def forget_borders(self) -> None:
        """All parts are finished, and nothing will go on from between them."""
        for part in range(self.count) if self.context.steps is not None else ():
            self.context.steps.forget(self._border_step(part))  # type: ignore[union-attr]

    def _border_files(self, part: int) -> list[Path]:
        assert self.context.steps is not None
        hidden = [name for name, io in io_of(self.parts[part])[1].items() if io.kind == "hidden"]
        return [self.context.steps.scratch(f"border_{part + 1}_{i}.npy") for i in range(len(hidden))]

    def _step(self, part: int) -> str:
        return f"calibrate_{part + 1}_of_{self.count}"

    def _border_step(self, part: int) -> str:
        return f"border_{part + 1}_of_{self.count}"


def _reading(
    model: Model, context: PassContext, i: int, pieces: Sequence[fx.GraphModule], weights: dict[str, WeightEncoding]
) -> AbstractContextManager[WeightStore]:
    """The model's weights, written to its sink as calibration reads them."""
    if context.sink is None:
        return nullcontext(model.weights)

    def encode(name: str, weight: torch.Tensor) -> Iterator[Block]:
        return encoded_blocks(weight, weights.get(name))

    order = [str(n.target) for piece in pieces for n in piece.graph.nodes if n.op == "get_attr"]
    return context.sink.while_reading(i, len(model.graphs[CALIBRATION].parts), encode, order)
