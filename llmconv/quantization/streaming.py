"""Calibration and quantized weights from one read of the checkpoint, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from torch import Tensor

from llmconv.encodings.grid import Block, Encoded
from llmconv.encodings.value import WeightEncoding
from llmconv.graph.model import Model
from llmconv.passes.context import PassContext, WeightWriter
from llmconv.quantization.calibration import CALIBRATION, Calibration, Range
from llmconv.quantization.nearest import Nearest, encoded_blocks, nearest_blocks
from llmconv.quantization.quantizer import Quantizer
from llmconv.weights.derived import tables_of
from llmconv.weights.store import WeightStore


def calibrate(
    model: Model,
    context: PassContext,
    weights: dict[str, WeightEncoding],
    quantizers: Mapping[str, Quantizer] = MappingProxyType({}),
) -> tuple[dict[str, Range], dict[str, Encoded]]:
    """The range of every value on the context's samples, and the weights that no file has taken.

    Where the context has a sink, weights are written to it as they are read; where it has steps, parts that an earlier
    run has finished are not run again.

    Args:
        quantizers: of weights with a scale for each row; by default all are rounded to nearest.
    """
    graph = model.graphs[CALIBRATION]
    if all(isinstance(q, Nearest) for q in quantizers.values()):
        quantizers = {}  # which whatever writes a weight does by itself, and the text sees float weights
    if context.sink is not None:
        context.sink.weights = model.weights
    kept = _Kept(model, context, weights, quantizers)
    ranges: dict[str, Range] = {}
    quantized: dict[str, Encoded] = {}
    if context.steps is not None:
        context.steps.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=None if context.steps is None else context.steps.folder) as folder:
        grids = {name: how.grid for name, how in weights.items()}
        calibration = Calibration(graph, context.samples, Path(folder), quantizers, grids)
        start = kept.resume(calibration, ranges)
        for i, part in enumerate(graph.parts[start:], start):
            pieces = calibration.pieces(part)
            order = [name for piece in pieces for name in calibration.weights(piece)]
            with _writing(model, context, i, order, weights, quantized) as store:
                found = calibration.run(part, pieces, store)
            kept.finish(i, found, calibration)
            ranges |= found
    kept.forget_borders()
    return ranges, quantized


def step_key(
    model: Model,
    context: PassContext,
    weights: Mapping[str, WeightEncoding],
    quantizers: Mapping[str, Quantizer],
    **more: Any,
) -> str:
    """The key of a step that depends on the samples, the weights and what is to become of them, and on `more`."""
    assert context.steps is not None
    rules = {name: [how.bits, how.block, repr(quantizers.get(name))] for name, how in weights.items()}
    return context.steps.key(samples=context.samples, rules=rules, tables=tables_of(model.weights), **more)


@dataclass
class _Kept:
    """What is kept of each part: its ranges, its weight file, and what it gives to the next part."""

    model: Model
    context: PassContext
    weights: dict[str, WeightEncoding]
    quantizers: Mapping[str, Quantizer]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.parts = self.model.graphs[CALIBRATION].parts
        self.count = len(self.parts)
        if self.context.steps is not None:
            self.key = step_key(self.model, self.context, self.weights, self.quantizers)

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
            calibration.skip(self.parts[last], self._border_files(last, calibration))
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
        if border := self._border_files(part, calibration):
            calibration.keep(self.parts[part], border)
            steps.finish(self._border_step(part), self.key, border, True)
        files, weights = sink.written(part)
        value = {"ranges": ranges, "weights": weights, "hashes": hashes}
        steps.finish(self._step(part), self.key, list(files), value, known=files)

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


def _writing(
    model: Model,
    context: PassContext,
    part: int,
    order: Sequence[str],
    weights: Mapping[str, WeightEncoding],
    quantized: dict[str, Encoded],
) -> AbstractContextManager[WeightWriter]:
    """The model's weights, written to the context's sink, or else kept where nobody could make them again."""
    if context.sink is None:
        return nullcontext(_Keeping(model.weights, quantized))

    def encode(name: str, weight: Tensor, encoded: Encoded | None) -> Iterator[Block]:
        return nearest_blocks(weight, weights.get(name)) if encoded is None else encoded_blocks(weight, encoded)

    return context.sink.while_reading(part, len(model.graphs[CALIBRATION].parts), encode, order)


@dataclass(frozen=True)
class _Keeping:
    store: WeightStore
    quantized: dict[str, Encoded]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self.store.read(name, rows)

    def sha256(self, name: str) -> str | None:
        return self.store.sha256(name)

    def write(self, name: str, weight: Tensor, encoded: Encoded | None = None) -> None:
        if encoded is not None:
            self.quantized[name] = encoded
