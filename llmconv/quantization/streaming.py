"""Calibration and quantized weights from one read of the checkpoint, a part at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import fx

from llmconv.encodings.value import WeightEncoding
from llmconv.graph.model import Model
from llmconv.passes.context import PassContext
from llmconv.quantization.calibration import CALIBRATION, Calibration, Range
from llmconv.weights.derived import tables_of
from llmconv.weights.store import WeightStore


def calibrate(
    model: Model, context: PassContext, weights: dict[str, WeightEncoding], tables: Mapping[str, str]
) -> dict[str, Range]:
    """The range of every value on the context's samples.

    Where the context has a sink, weights are written to it as they are read; where it has steps, parts that an earlier
    run has finished are not run again.

    Args:
        tables: embedding table -> the value that is looked up in it; its range is that of the whole table.
    """
    parts = model.graphs[CALIBRATION].parts
    if context.sink is not None:
        context.sink.weights = model.weights
    calibration = Calibration(model.graphs[CALIBRATION], context.samples)
    kept = _Kept(model, context, weights)
    ranges: dict[str, Range] = {}
    start = kept.resume(calibration, ranges)
    for i, part in enumerate(parts[start:], start):
        with _reading(model, context, i, part, weights) as store:
            watched = _Tables(store, tables)
            found = calibration.run(part, watched) | watched.ranges
        kept.finish(i, found, calibration.border(part))
        ranges |= found
    kept.forget_borders()
    return ranges


@dataclass
class _Kept:
    """What is kept of each part: its ranges, its weight file, and what it gave to the next part."""

    model: Model
    context: PassContext
    weights: dict[str, WeightEncoding]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.model.graphs[CALIBRATION].parts)
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
            calibration.skip(load_file(steps.scratch(f"border_{last + 1}.safetensors")))
        for i, record in enumerate(records):
            sink.restore(i, self.count, record["weights"])
            ranges |= {name: (low, high) for name, (low, high) in record["ranges"].items()}
            self.context.hashes.update(record["hashes"])
        return len(records)

    def finish(self, part: int, ranges: dict[str, Range], border: dict[str, torch.Tensor]) -> None:
        """Record a part that has run, its border first: a part that is finished can be gone on from."""
        hashes = {name: sha for name, sha in self.context.hashed().items() if name not in self.context.hashes}
        self.context.hashes.update(hashes)
        steps, sink = self.context.steps, self.context.sink
        if steps is None or sink is None:
            return
        if border:
            file = steps.scratch(f"border_{part + 1}.safetensors")
            save_file(border, file)
            steps.finish(self._border_step(part), self.key, [file], True)
        files, weights = sink.written(part)
        value = {"ranges": ranges, "weights": weights, "hashes": hashes}
        steps.finish(self._step(part), self.key, list(files), value, known=files)

    def forget_borders(self) -> None:
        """All parts are finished, and nothing will go on from between them."""
        for part in range(self.count) if self.context.steps is not None else ():
            self.context.steps.forget(self._border_step(part))  # type: ignore[union-attr]

    def _step(self, part: int) -> str:
        return f"calibrate_{part + 1}_of_{self.count}"

    def _border_step(self, part: int) -> str:
        return f"border_{part + 1}_of_{self.count}"


class _Tables:
    """A store that notes the ranges of embedding tables as they are read: any row may be looked up."""

    def __init__(self, store: WeightStore, tables: Mapping[str, str]) -> None:
        self._store, self._tables = store, tables
        self.ranges: dict[str, Range] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        weight = self._store.read(name, rows)
        if name in self._tables:
            self.ranges[self._tables[name]] = (float(weight.min()), float(weight.max()))
        return weight

    def sha256(self, name: str) -> str | None:
        return self._store.sha256(name)


def _reading(
    model: Model, context: PassContext, i: int, part: fx.GraphModule, weights: dict[str, WeightEncoding]
) -> AbstractContextManager[WeightStore]:
    """The model's weights, written to its sink as calibration reads them."""
    if context.sink is None:
        return nullcontext(model.weights)
    order = [str(n.target) for n in part.graph.nodes if n.op == "get_attr"]
    return context.sink.while_reading(i, len(model.graphs[CALIBRATION].parts), weights, order)
