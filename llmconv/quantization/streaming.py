"""Calibration and quantized weights from one read of the checkpoint, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from llmconv.cores import threads_left
from llmconv.encodings.grid import Block, Encoded
from llmconv.encodings.value import WeightEncoding
from llmconv.graph.model import Model
from llmconv.passes.context import PassContext, WeightWriter
from llmconv.quantization.calibration import CALIBRATION, Calibration, Range
from llmconv.quantization.kept import Kept
from llmconv.quantization.magnitudes import Magnitudes
from llmconv.quantization.nearest import Nearest, encoded_blocks, nearest_blocks
from llmconv.quantization.quantizer import Quantizer
from llmconv.weights.store import WeightStore
from llmconv.work.switching import threads_switched_soon

FEW = 128  # tokens that take a core less time than to read and round the weights that they are multiplied with


def calibrate(
    model: Model,
    context: PassContext,
    weights: dict[str, WeightEncoding],
    quantizers: Mapping[str, Quantizer] = MappingProxyType({}),
    magnitudes: Magnitudes | None = None,
) -> tuple[dict[str, Range], dict[str, Encoded]]:
    """The range of every value on the context's samples, and the weights that no file has taken.

    Where the context has a sink, weights are written to it as they are read; where it has steps, parts and pieces of
    parts that an earlier run has finished are not run again.

    Args:
        quantizers: of weights with a scale for each row; by default all are rounded to nearest.
        magnitudes: take the values that they look at.
    """
    graph = model.graphs[CALIBRATION]
    if all(isinstance(q, Nearest) for q in quantizers.values()):
        quantizers = {}  # which whatever writes a weight does by itself, and the text sees float weights
    if context.sink is not None:
        context.sink.weights = model.weights
    magnitudes = magnitudes or Magnitudes()
    kept = Kept(model, context, weights, quantizers, magnitudes)
    ranges: dict[str, Range] = {}
    quantized: dict[str, Encoded] = {}
    # two threads that run samples, as quantizers need them, would only be switched more often
    reads_beside = context.sink is not None and not quantizers
    room = _room_for_reading(sum(map(len, context.samples))) if reads_beside else nullcontext()
    with context.scratch() as folder, room:
        grids = {name: how.grid for name, how in weights.items()}
        calibration = Calibration(graph, context.samples, folder, quantizers, grids)
        done = kept.resume(calibration, ranges, quantized)
        for i, part in enumerate(graph.parts[done:], done):
            pieces = calibration.pieces(part)
            order = [name for piece in pieces for name in calibration.weights(piece)]
            with _writing(model, context, i, order, weights, quantized) as store:
                start, found = kept.resume_pieces(i, pieces, calibration, store)
                for piece in calibration.walk(part, pieces, store, magnitudes.observe, start=start, ranges=found):
                    found = piece.ranges
                    if piece.number + 1 < len(pieces):
                        kept.finish_piece(i, piece, calibration)
            made = {name: quantized[name] for name in order if name in quantized}
            quantized |= kept.finish(i, len(pieces), found, calibration, made)
            ranges |= found
    kept.forget_borders()
    return ranges, quantized


@contextmanager
def _room_for_reading(tokens: int) -> Iterator[None]:
    """For the threads that read and round weights, beside runs of so many tokens."""
    with threads_switched_soon(), threads_left(2 if tokens <= FEW else 0):
        yield


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
        return nullcontext(Keeping(model.weights, quantized))

    def encode(name: str, weight: Tensor, encoded: Encoded | None) -> Iterator[Block]:
        return nearest_blocks(weight, weights.get(name)) if encoded is None else encoded_blocks(weight, encoded)

    return context.sink.while_reading(part, len(model.graphs[CALIBRATION].parts), encode, order)


@dataclass(frozen=True)
class Keeping:
    """A store whose weights no file takes; what quantizers have made of them stays in memory.

    Attributes:
        quantized: takes those.
    """

    store: WeightStore
    quantized: dict[str, Encoded]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """As the store reads it."""
        return self.store.read(name, rows)

    def sha256(self, name: str) -> str | None:
        """As the store has it."""
        return self.store.sha256(name)

    def write(self, name: str, weight: Tensor, encoded: Encoded | None = None) -> None:
        """As `WeightWriter.write`; what is rounded to nearest can be made again."""
        if encoded is not None:
            self.quantized[name] = encoded
