"""Calibration: ranges of values over text, and weights quantized on what the ones before them give."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from threading import Event
from types import MappingProxyType

import torch
from torch import Tensor, fx

from llmconv.cores import side_by_side
from llmconv.decoding.torch_runner import HostInputs
from llmconv.encodings.grid import Encoded, Grid
from llmconv.errors import PassError
from llmconv.graph.model import Graph, aten, inputs_of, io_of, name_of, outputs_of
from llmconv.graph.ops import REARRANGEMENT, REQUANTIZE, weight_of
from llmconv.graph.run import Observer, Program
from llmconv.heap import trim
from llmconv.passes.context import WeightWriter
from llmconv.plugins.frame import plugin_code
from llmconv.quantization.linears import LinearInput, linear_inputs
from llmconv.quantization.moments import Moments
from llmconv.quantization.quantizer import Quantizer
from llmconv.quantization.segments import segments
from llmconv.quantization.stored_values import StoredValues
from llmconv.weights.store import DictStore, WeightStore

CALIBRATION = "calibration"  # the graph without past, as long as a sample, that passes see beside the recipe's own

BATCH_TOKENS = 1024  # that run at once: their values are all that memory holds of the samples
BATCH_NUMBERS = 1 << 24  # of the widest value, such as logits over a vocabulary, that run at once

Range = tuple[float, float]
_SAME_NUMBERS = REARRANGEMENT | {REQUANTIZE}


@dataclass(frozen=True)
class Done:
    """A piece that all samples have passed.

    Attributes:
        ranges: the smallest and largest number of every float value of the part so far; of an embedding those of its
            whole table, since any row may be looked up.
        quantized: its weights whose quantizers look at inputs.
    """

    number: int
    ranges: dict[str, Range]
    quantized: dict[str, Encoded]


def _nobody(_node: fx.Node, _value: Tensor) -> None:
    """An observer that looks at nothing."""


class Calibration:
    """Samples on their way through the parts of a graph, which all of them pass before the next part begins.

    A part is run in pieces, each over the samples in batches; between pieces the samples' values lie on disk. So memory
    holds one piece's weights and one batch's values, however many samples there are.

    Where weights have quantizers, a piece's are quantized before it runs, on the inputs that the pieces before have
    left, and it runs with what came of them. The float model goes beside it where a quantizer asks for that.

    Samples are read once by the model as it is, and once more with each adapter that the graph takes as inputs.

    Args:
        graph: one without past, `ar` = `context` = length of a sample.
        samples: token ids; each starts with BOS, whose massive activations must be in range.
        folder: for the values; an empty one.
        quantizers: of weights by name.
        grids: of the same weights.
    """

    def __init__(
        self,
        graph: Graph,
        samples: Sequence[Sequence[int]],
        folder: Path,
        quantizers: Mapping[str, Quantizer] = MappingProxyType({}),
        grids: Mapping[str, Grid] = MappingProxyType({}),
    ) -> None:
        hosts = [HostInputs(graph, adapter) for adapter in (None, *graph.adapters)]
        self._samples = [(host, sample) for host in hosts for sample in samples]
        self._quantizers, self._grids, self._ar = quantizers, grids, graph.ar
        self._own = StoredValues(folder, len(self._samples))
        self._float: StoredValues | None = None
        if any(q.needs_float for q in quantizers.values()):
            (folder / "float").mkdir()
            self._float = StoredValues(folder / "float", len(self._samples))

    def pieces(self, part: fx.GraphModule) -> list[fx.GraphModule]:
        """What a part is run in: to the inputs of each weight whose quantizer looks at them."""
        found = linear_inputs(part)
        return segments(part, {found[name].value for name in self._looking if name in found})

    def weights(self, piece: fx.GraphModule) -> list[str]:
        """The weights of a piece, in the order in which they are read."""
        names = list(dict.fromkeys(str(n.target) for n in piece.graph.nodes if n.op == "get_attr"))
        return sorted(names, key=lambda name: name not in self._looking)

    @property
    def _looking(self) -> set[str]:
        """The weights whose quantizers look at inputs; a piece begins with them."""
        return {name for name, quantizer in self._quantizers.items() if quantizer.needs_inputs}

    def run(
        self,
        part: fx.GraphModule,
        weights: WeightWriter,
        observer: Observer = _nobody,
        names: Collection[str] | None = None,
    ) -> dict[str, Range]:
        """`walk` through a whole part, or of the last part to the last of some values; gives the ranges of its values.

        Args:
            names: of those values, where not all are asked for.
        """
        ranges: dict[str, Range] = {}
        pieces = self.pieces(part)
        if names is not None and not _hidden(part):
            pieces = pieces[: max((i for i, piece in enumerate(pieces, 1) if _computes(piece, names)), default=0)]
        for done in self.walk(part, pieces, weights, observer):
            ranges = done.ranges
        return ranges

    def walk(
        self,
        part: fx.GraphModule,
        pieces: Sequence[fx.GraphModule],
        weights: WeightWriter,
        observer: Observer = _nobody,
        *,
        start: int = 0,
        ranges: Mapping[str, Range] = MappingProxyType({}),
    ) -> Iterator[Done]:
        """Run the next part piece by piece, and give after each one what has come of it.

        Args:
            pieces: as `pieces` gives them.
            weights: each is read once a piece, and written.
            observer: is shown every float value of every sample that the part computes.
            start: the piece to begin with, after `skip_pieces`.
            ranges: those that the pieces before have found.

        Raises:
            PassError: a value is not finite, or a quantizer fails.
        """
        found, inputs, hidden = _Ranges(ranges), linear_inputs(part), _hidden(part)

        def observe(node: fx.Node, value: Tensor) -> None:
            computed = node.op != "placeholder"
            if computed or i == 0:  # what later pieces are given, an earlier one has shown
                found.observe(node, value)
            if computed:
                observer(node, value)

        for i, piece in enumerate(pieces[start:], start):
            if any(prod(weights.shape(name)) > BATCH_NUMBERS for name in self.weights(piece)):
                trim()  # such a weight is not to lie beside what pieces before have freed
            exact, quantized = self._quantized(piece, inputs, weights)
            later = {name for following in pieces[i + 1 :] for name in inputs_of(following)} | set(hidden.values())
            rounded = {name: encoded.dequantize() for name, encoded in quantized.items()}
            held = _Held(weights, found, _tables(piece), self._encoded, weights=rounded)
            own = partial(self._pass_through, piece, held, self._own, later, observe)
            if self._float is not None and (hidden or any(map(self._needs_float, pieces[i + 1 :]))):
                for name in self.weights(piece):
                    held.read(name)
                exact |= held.exact
                side_by_side(own, partial(self._pass_through, piece, DictStore(exact), self._float, later, None))
            else:
                own()
            del held, own, exact, rounded  # before whoever takes the piece holds anything of it
            if i + 1 == len(pieces):
                for name, value in hidden.items():
                    for stored in self.streams:
                        stored.move(value, name)
            yield Done(i, found, quantized)

    def skip_pieces(
        self, pieces: Sequence[fx.GraphModule], weights: WeightWriter, quantized: Mapping[str, Encoded]
    ) -> None:
        """Write the weights of pieces that an earlier run has been through, which has kept what came of them.

        Args:
            quantized: those of the weights whose quantizers look at inputs.
        """
        for name in (name for piece in pieces for name in self.weights(piece)):
            weight = weights.read(name)
            weights.write(name, weight, quantized[name] if name in self._looking else self._encoded(name, weight))

    def _batches(self, widest: int = 0, streams: int = 1) -> list[range]:
        """Samples that run together.

        Args:
            widest: how many numbers one of them has in a value.
            streams: that run beside each other, on as many batches.
        """
        size = max(1, min(BATCH_TOKENS // (self._ar * streams), BATCH_NUMBERS // max(1, widest)))
        return [range(i, min(i + size, len(self._samples))) for i in range(0, len(self._samples), size)]

    def _needs_float(self, piece: fx.GraphModule) -> bool:
        found = (self._quantizers.get(name) for name in self.weights(piece))
        return any(quantizer is not None and quantizer.needs_float for quantizer in found)

    @property
    def streams(self) -> list[StoredValues]:
        """The samples' values between two pieces, on disk; and beside them the float model's, where it goes along."""
        return [self._own] if self._float is None else [self._own, self._float]

    def _pass_through(
        self,
        piece: fx.GraphModule,
        weights: WeightStore,
        stored: StoredValues,
        later: Collection[str],
        observer: Observer | None = None,
        over: Event | None = None,
    ) -> None:
        """Run a piece on every sample, from what is stored to what is stored, unless that is over before."""
        program = Program(piece, weights, observer=observer)
        for batch in self._batches(_widest(piece), len(self.streams)):
            if over is not None and over.is_set():
                return
            for outputs in program.run([self._inputs(piece, sample, stored) for sample in batch]):
                stored.add(outputs)
        stored.finish(later)

    def _quantized(
        self, piece: fx.GraphModule, inputs: Mapping[str, LinearInput], weights: WeightWriter
    ) -> tuple[dict[str, Tensor], dict[str, Encoded]]:
        """A piece's weights whose quantizers look at inputs, as they are and on their grids."""
        exact: dict[str, Tensor] = {}
        quantized: dict[str, Encoded] = {}
        moments: dict[str, Moments] = {}
        for name in self.weights(piece):
            if name not in self._looking:
                continue
            seen = None
            if (read := inputs.get(name)) is not None:
                if read.value not in moments:
                    moments.clear()  # those of one input at a time: they are large
                    moments[read.value] = self._moments(read, inputs)
                seen = moments[read.value]
            weight = weights.read(name)
            encoded = self._encoded(name, weight, seen)
            assert encoded is not None
            weights.write(name, weight, encoded)
            exact[name], quantized[name] = weight, encoded
        return exact, quantized

    def _encoded(self, name: str, weight: Tensor, inputs: Moments | None = None) -> Encoded | None:
        """A weight as its quantizer has it; None where it has none."""
        quantizer = self._quantizers.get(name)
        if quantizer is None:
            return None
        with plugin_code(quantizer, f"quantizer '{quantizer.name}' on weight '{name}'"):
            return quantizer.quantize(weight, self._grids[name], inputs)

    def _moments(self, read: LinearInput, inputs: Mapping[str, LinearInput]) -> Moments:
        """Of a value, as all weights need them that read it."""
        alike = [self._quantizers[n] for n in self._looking if n in inputs and inputs[n].value == read.value]
        found = Moments(read.columns, self._float is not None, any(quantizer.needs_products for quantizer in alike))
        for batch in self._batches():
            own, *of_float = (
                torch.cat([read.tokens(stored.read(read.stored, sample)) for sample in batch])
                for stored in self.streams
            )
            found.add(own, *of_float)
        return found

    def keep(self, part: fx.GraphModule, paths: Sequence[Path]) -> None:
        """Move what a part that has run gives to the next, in the order of its outputs, out of the folder."""
        for name, stored, path in self._outgoing(part, paths):
            stored.move(name, name, path)

    def skip(self, part: fx.GraphModule, paths: Sequence[Path]) -> None:
        """Go on after a part that an earlier run has kept so."""
        for name, stored, path in self._outgoing(part, paths):
            stored.open(name, path)

    def outgoing(self, part: fx.GraphModule) -> int:
        """How many files `keep` takes."""
        return len(_hidden(part)) * len(self.streams)

    def _outgoing(self, part: fx.GraphModule, paths: Sequence[Path]) -> Iterator[tuple[str, StoredValues, Path]]:
        pairs = [(name, stored) for stored in self.streams for name in _hidden(part)]
        return ((name, stored, path) for (name, stored), path in zip(pairs, paths, strict=True))

    def _inputs(self, piece: fx.GraphModule, sample: int, stored: StoredValues) -> dict[str, Tensor]:
        host, tokens = self._samples[sample]
        given = host.of(tokens)
        return {n: given[n] if n in given else stored.read(n, sample) for n in inputs_of(piece)}


class _Ranges(dict[str, Range]):
    """The smallest and largest number of each value so far."""

    def observe(self, node: fx.Node, value: Tensor) -> None:
        if node.target in _SAME_NUMBERS and (known := self.get(name_of(node.all_input_nodes[0]))) is not None:
            self[name_of(node)] = known
        else:
            self.add(name_of(node), value)

    def add(self, name: str, value: Tensor) -> None:
        low, high = (float(x) for x in torch.aminmax(value))
        if not math.isfinite(high - low):
            raise PassError(f"value '{name}' is not finite on calibration text; is the checkpoint damaged?")
        old = self.get(name, (low, high))
        self[name] = (min(low, old[0]), max(high, old[1]))


@dataclass
class _Held:
    """A piece's weights: each read and written once, and held until the piece has run.

    Attributes:
        tables: embedding table -> the value that is looked up in it.
        encode: a weight by name, on its grid where it has a quantizer.
        weights: those that are held, as they come from their grids; at first those that are quantized already.
        exact: the others as they are, once they are read.
    """

    store: WeightWriter
    ranges: _Ranges
    tables: Mapping[str, str]
    encode: Callable[[str, Tensor], Encoded | None]
    weights: dict[str, Tensor]
    exact: dict[str, Tensor] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.store.shape(name)

    def sha256(self, name: str) -> str | None:
        return self.store.sha256(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        if name not in self.weights:
            weight = self.exact[name] = self.store.read(name, rows)
            encoded = self.encode(name, weight)
            self.weights[name] = weight if encoded is None else encoded.dequantize()
            self.store.write(name, weight, encoded)
            if name in self.tables:
                self.ranges.add(self.tables[name], weight)
        return self.weights[name]


def _tables(piece: fx.GraphModule) -> dict[str, str]:
    lookups = [n for n in piece.graph.nodes if n.target is aten.embedding.default]
    weights = {n: weight_of(n.args[0]) for n in lookups}
    return {str(weight.target): name_of(n) for n, weight in weights.items() if weight is not None}


def _widest(piece: fx.GraphModule) -> int:
    """How many numbers the largest value has that is computed from a sample."""
    values = [n.meta["val"] for n in piece.graph.nodes if n.op == "call_function" and weight_of(n) is None]
    return max((value.numel() for value in values if isinstance(value, Tensor)), default=0)


def _computes(piece: fx.GraphModule, names: Collection[str]) -> bool:
    return any(n.op == "call_function" and name_of(n) in names for n in piece.graph.nodes)


def _hidden(part: fx.GraphModule) -> dict[str, str]:
    """What a part gives to the next: the structural names of its hidden states, by I/O name."""
    io = io_of(part)[1]
    return {name: name_of(node) for name, node in outputs_of(part).items() if io[name].kind == "hidden"}
