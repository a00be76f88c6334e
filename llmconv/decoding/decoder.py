"""The host's side of decoding: chunks of tokens through graphs that share one KV cache."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmconv.decoding.cache import Slot
from llmconv.encodings.value import Encoding
from llmconv.errors import ContextFullError, LlmconvError
from llmconv.graph.model import IO

Array = NDArray[np.float32]
Arrays = dict[str, NDArray[np.generic]]
# What a masked position adds to a score: more than scores can differ by, and a number in float16. A quantized graph's
# own encoding of the mask ends earlier, and there the host's number ends with it.
MASKED = -3e4


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph as the host sees it: float32, or int32 for ids.

    Attributes:
        encoding: of keys and values that the host caches as the integers that the graph has; None where it has floats.
    """

    io: IO
    shape: tuple[int, ...]
    encoding: Encoding | None = None

    @property
    def slot(self) -> tuple[str, int] | None:
        """Where it is cached: "key" or "value" and the layer; None for what is not.

        Raises:
            LlmconvError: it is a key or value without a layer or a token axis.
        """
        _, _, what = self.io.kind.partition("_")
        if what not in ("key", "value"):
            return None
        if self.io.layer is None or self.io.token_axis is None:
            raise LlmconvError("a key or value without a layer or a token axis")
        return what, self.io.layer

    def floats(self, value: NDArray[np.generic]) -> NDArray[np.generic]:
        """An array of it as floats."""
        if self.encoding is None:
            return value
        shifted = value.astype(np.float32) - np.float32(self.encoding.zero_point)
        return np.asarray(shifted * np.float32(self.encoding.scale))


class Runner(Protocol):
    """A graph that can be run, all its parts in turn."""

    name: str
    ar: int
    context: int

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """What the host fills, by I/O name."""
        ...

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        """What the host reads, by I/O name."""
        ...

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """The outputs by I/O name.

        Args:
            inputs: to be read during the run alone: what is cached is given as the cache itself.
        """
        ...


class _Sized(Protocol):
    @property
    def ar(self) -> int: ...

    @property
    def context(self) -> int: ...


_S = TypeVar("_S", bound=_Sized)


def widest(graphs: Iterable[_S]) -> _S:
    """The graph that reads most tokens at once, and of several such the one that sees most."""
    return max(graphs, key=lambda graph: (graph.ar, graph.context))


def whole_runs(graph: _Sized) -> int:
    """How many tokens a graph that takes a past reads by itself: as many whole runs as its context holds."""
    return graph.context // graph.ar * graph.ar


def takes_past(runner: Runner) -> bool:
    """Whether a graph sees tokens of earlier runs."""
    return any(t.io.kind == "past_key" for t in runner.inputs.values())


def gives_all_rows(runner: Runner) -> bool:
    """Whether a graph gives logits for each token that it reads, not for the last one alone."""
    return any(t.io.kind == "logits" and t.shape[1] == runner.ar for t in runner.outputs.values())


def reach(runner: Runner, count: int) -> int:
    """How many of `count` tokens a graph can read by itself: those of one run where it takes no past."""
    count = min(count, whole_runs(runner) if takes_past(runner) else runner.ar)
    return count if gives_all_rows(runner) else count // runner.ar * runner.ar


@dataclass(frozen=True)
class LongText:
    """A text that is longer than the context: positions count on, and the oldest ones are forgotten.

    After each run a graph's own past holds what is remembered, as in Genie.

    Attributes:
        length: tokens at most.
        sinks: how many of the first are not forgotten.
    """

    length: int
    sinks: int


class Decoder:
    """Reads tokens through graphs that share one cache.

    Args:
        runners: at least one graph; for each chunk the largest that fits is taken, and of graphs that read as many the
            one that sees least. Where that has no room left, the cache is laid out for one that sees more.
        rope: cos and sin by kind of input, each (context, channels that are turned / 2), where graphs take them; for a
            long text (its length and the largest `ar`, channels that are turned / 2).
        long: for a text that is longer than the context; graphs are then of one context.
        adapter: by I/O name, what inputs of kind "lora" are filled with; zeros, with which they change nothing, by
            default.

    Raises:
        LlmconvError: two graphs have a layer's keys or values in different encodings.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        rope: Mapping[str, Array] | None,
        long: LongText | None = None,
        adapter: Mapping[str, Array] | None = None,
    ) -> None:
        self.runners = sorted(runners, key=lambda r: (-r.ar, r.context))
        self.rope, self.adapter = rope or {}, adapter or {}
        self.long = long
        self.context = long.length if long else max(r.context for r in runners)
        self._cache = _slots(self.runners)
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self.length = self._dropped = 0
        for slot in self._cache.values():
            slot.reset()

    def rewind(self, length: int) -> int:
        """Forget all but the first tokens; what is behind them in the cache is hidden, and written over.

        Returns:
            How many are kept: none where the graph that reads most takes no past, since it reads all again faster than
            another goes on; none where some are forgotten already.
        """
        if self._dropped or not takes_past(widest(self.runners)):
            self.reset()
        self.length = min(length, self.length)
        return self.length

    @property
    def crowded(self) -> bool:
        """Whether a long text's graph that reads most has no room left for what is remembered.

        Genie, too, then has to be given everything again.
        """
        most = widest(self.runners)
        return self.long is not None and self._cached > most.context - most.ar

    @property
    def _cached(self) -> int:
        return self.length - self._dropped

    def read(self, tokens: Sequence[int]) -> Array:
        """Read tokens after those read before, each chunk through the largest graph that fits.

        Returns:
            Logits (tokens, vocabulary), float32; (1, vocabulary) a chunk where a graph gives its last row alone.

        Raises:
            ContextFullError: the tokens do not fit into the context.
            ValueError: there are no tokens.
        """
        if not tokens:
            raise ValueError("no tokens to read")
        rows = []
        while tokens:
            runner = self._choose(len(tokens))
            chunk, tokens = tokens[: runner.ar], tokens[runner.ar :]
            rows.append(self._run(runner, chunk))
        return np.concatenate(rows) if len(rows) > 1 else rows[0]

    def _choose(self, count: int) -> Runner:
        fits = [r for r in self.runners if self._fits(r, count)]
        if not fits and self.length < self.context:
            raise ContextFullError(f"no graph reads on after {self.length} tokens; one with a past is needed")
        if not fits:
            raise ContextFullError(f"the context of {self.context} tokens is full")
        wide = [r for r in fits if count > 1 or r.ar == 1]  # a single token goes through the token graph
        return (wide or fits)[0]

    def _fits(self, runner: Runner, count: int) -> bool:
        """Whether what is cached fits the graph's past, and one token more its context.

        A graph that gives its last row alone cannot be padded: that row would be the padding's.
        """
        past = runner.context - runner.ar
        if count < runner.ar and not gives_all_rows(runner):
            return False
        if self.long is not None and self.length >= self.long.length:
            return False
        return self.length == 0 or (takes_past(runner) and self._cached <= past)

    def inputs_for(self, runner: Runner, chunk: Sequence[int], names: Collection[str] | None = None) -> Arrays:
        """What a graph is given to read at most `ar` tokens after those read before; of its inputs all by default."""
        wanted = runner.inputs if names is None else {name: runner.inputs[name] for name in names}
        return {name: self._fill(runner, name, tensor, chunk) for name, tensor in wanted.items()}

    def _run(self, runner: Runner, chunk: Sequence[int]) -> Array:
        outputs = runner.run(self.inputs_for(runner, chunk))
        if self.long is not None:
            self._drop(self._cached + len(chunk) - (runner.context - runner.ar), self.long.sinks)
        logits = None
        for name, tensor in runner.outputs.items():
            if (key := tensor.slot) is not None:
                self._cache[key].write(outputs[name], len(chunk), self._cached)
            elif tensor.io.kind == "logits":
                logits = outputs[name]
        if logits is None:
            raise LlmconvError(f"graph '{runner.name}' has no logits")
        self.length += len(chunk)
        return np.asarray(logits[0, : len(chunk)], dtype=np.float32)

    def _drop(self, count: int, sinks: int) -> None:
        """Forget the oldest positions behind the sinks; none where `count` is below 1."""
        if count > 0:
            for slot in self._cache.values():
                slot.drop(sinks, count, self._cached)
            self._dropped += count

    def _fill(self, runner: Runner, name: str, tensor: Tensor, chunk: Sequence[int]) -> NDArray[np.generic]:
        kind = tensor.io.kind
        positions = np.arange(self.length, self.length + runner.ar)
        if kind == "input_ids":
            ids = np.zeros(tensor.shape, dtype=np.int32)
            ids[0, : len(chunk)] = chunk
            return ids
        if kind == "position_ids":
            return positions[None].astype(np.int32)
        if kind.endswith(("rope_cos", "rope_sin")):
            if kind not in self.rope:
                raise LlmconvError(f"graph '{runner.name}' takes RoPE inputs, but no table was given")
            return self.rope[kind][positions].reshape(tensor.shape)
        if kind == "attention_mask":
            return self._mask(runner).reshape(tensor.shape)
        if kind == "lora":
            given = self.adapter.get(name)
            return np.zeros(tensor.shape, dtype=np.float32) if given is None else given.reshape(tensor.shape)
        if (key := tensor.slot) is not None:
            return self._cache[key].past(tensor.shape, self._cached)
        raise LlmconvError(
            f"graph '{runner.name}' has an input of kind {kind} that the host cannot fill (layer {tensor.io.layer})"
        )

    def _mask(self, runner: Runner) -> Array:
        """(ar, context): past positions that are filled, then the new ones causally."""
        past = runner.context - runner.ar
        mask = np.full((runner.ar, runner.context), MASKED, dtype=np.float32)
        mask[:, : min(self._cached, past)] = 0.0
        mask[:, past:][np.tril_indices(runner.ar)] = 0.0
        return mask


def _slots(runners: Sequence[Runner]) -> dict[tuple[str, int], Slot]:
    """Every slot of the cache that graphs share."""
    found: dict[tuple[str, int], tuple[Runner, Tensor]] = {}
    room: dict[tuple[str, int], int] = {}
    for runner in runners:
        for tensor in (*runner.inputs.values(), *runner.outputs.values()):
            if (key := tensor.slot) is None:
                continue
            other, first = found.setdefault(key, (runner, tensor))
            if (tensor.encoding, tensor.io.token_axis) != (first.encoding, first.io.token_axis):
                raise LlmconvError(
                    f"graphs '{other.name}' and '{runner.name}' cannot share a cache: "
                    f"the {key[0]}s of layer {key[1]} have another encoding or token axis; convert again"
                )
            past = runner.context - runner.ar if tensor.io.kind.startswith("past_") else 0
            room[key] = max(past, room.get(key, 0))
    return {key: _slot(tensor, room[key]) for key, (_, tensor) in found.items()}


def _slot(tensor: Tensor, room: int) -> Slot:
    encoding, axis = tensor.encoding, tensor.io.token_axis or 0
    return Slot(axis, encoding.dtype, encoding.zero_point, room) if encoding else Slot(axis, "float32", 0, room)
