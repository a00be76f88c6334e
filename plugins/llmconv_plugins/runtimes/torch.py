"""torch on the CPU: the bundle's graphs before lowering, quantized and dequantized wherever its encodings say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar

from llmconv import Bundle
from llmconv.decoding import Runner, TorchRunner
from llmconv.prepare import remake
from llmconv.runtimes import GraphRuntime
from llmconv.weights import HeldStore

HELD = 1 << 30  # bytes of weights that are read once


@dataclass(frozen=True)
class TorchRuntime(GraphRuntime):
    """Runs the bundle's fake-quantized graphs in torch; weights of up to a gigabyte are read once."""

    name: ClassVar[str] = "torch"

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> AbstractContextManager[list[Runner]]:
        """Runners over one trace of the model."""
        return _open(bundle, list(graphs or bundle.graphs))


@contextmanager
def _open(bundle: Bundle, graphs: list[str]) -> Iterator[list[Runner]]:
    model = remake(bundle)
    weights = HeldStore(model.weights, HELD)
    yield [TorchRunner(model.graphs[name], weights, model.encodings) for name in graphs]
