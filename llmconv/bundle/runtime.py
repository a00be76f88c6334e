"""What a runtime plugin does: run a bundle's graphs; and what all of them share, the walk through the parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from llmconv.bundle.bundle import SOURCE, Bundle, GraphSpec, TensorSpec
from llmconv.checkpoint.source import Source
from llmconv.decoding.decoder import Array, Arrays, Decoder, Runner, Tensor
from llmconv.decoding.dialog import DecoderDialog, Dialog
from llmconv.decoding.generate import Sampler, Sampling
from llmconv.graph.model import IO

if TYPE_CHECKING:
    from llmconv.plugins import Registry

ROPE = "rope.safetensors"

RunPart = Callable[[int, Arrays], Arrays]


@dataclass(frozen=True)
class Runtime(ABC):
    """Runs bundles. A subclass is a frozen dataclass without options."""

    name: ClassVar[str]

    def lacks(self, bundle: Bundle) -> str | None:
        """What the bundle lacks that this runtime needs, if anything."""
        return None

    @abstractmethod
    def dialog(self, bundle: Bundle, sampling: Sampling, eos: Sequence[int]) -> AbstractContextManager[Dialog]:
        """A conversation with a bundle, nothing read yet; what it holds is freed at the end.

        Args:
            eos: ids that end the text.

        Raises:
            BackendError: the runtime is not installed, or refuses the bundle.
        """


@dataclass(frozen=True)
class GraphRuntime(Runtime):
    """A runtime that runs each graph by itself and gives its logits, so that it can be compared with others."""

    @abstractmethod
    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> AbstractContextManager[list[Runner]]:
        """Runners for the named graphs of a bundle, all by default; what they hold is freed at the end.

        Raises:
            BackendError: the runtime is not installed, or refuses a part.
        """

    @contextmanager
    def dialog(self, bundle: Bundle, sampling: Sampling, eos: Sequence[int]) -> Iterator[Dialog]:
        """Over all graphs of the bundle."""
        with self.open(bundle) as runners:
            yield DecoderDialog(Decoder(runners, rope_table(bundle)), Sampler(sampling), eos)


class PartsRunner:
    """A graph run part by part on integers, floats at its ends.

    Args:
        run_part: runs one part, counted from 0, on the tensors that files and binaries have.
    """

    def __init__(self, graph: GraphSpec, run_part: RunPart) -> None:
        self.name, self.ar, self.context = graph.name, graph.ar, graph.context
        self.graph, self.run_part = graph, run_part
        self.inputs = _host_view(t for p in graph.parts for t in p.inputs)
        self.outputs = _host_view(t for p in graph.parts for t in p.outputs)
        self.raw: Arrays = {}  # the integers of the last run, hidden states among them

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Quantize, run the parts in turn, dequantize."""
        values: Arrays = {}
        for i, part in enumerate(self.graph.parts):
            for spec in part.inputs:
                if spec.name not in values:
                    values[spec.name] = quantize(inputs[spec.name], spec)
            values |= self.run_part(i, {spec.name: values[spec.name] for spec in part.inputs})
        self.raw = values
        specs = {t.name: t for p in self.graph.parts for t in p.outputs}
        return {name: dequantize(values[name], specs[name]) for name in self.outputs}


def _host_view(specs: object) -> dict[str, Tensor]:
    found = {}
    for spec in specs:  # type: ignore[attr-defined]
        if spec.kind != "hidden":
            found[spec.name] = Tensor(IO(spec.kind, spec.layer, spec.head_axis, spec.token_axis), spec.shape)
    return found


def quantize(value: NDArray[np.generic], spec: TensorSpec) -> NDArray[np.generic]:
    """A host's array as the part takes it."""
    if spec.encoding is None:
        return value.astype(spec.dtype)
    top = 2 ** spec.encoding["bits"] - 1
    scaled = np.round(value.astype(np.float32) / np.float32(spec.encoding["scale"])) + spec.encoding["zero_point"]
    return np.asarray(np.clip(scaled, 0, top)).astype(spec.dtype)


def dequantize(value: NDArray[np.generic], spec: TensorSpec) -> NDArray[np.generic]:
    """A part's array as floats."""
    if spec.encoding is None:
        return value
    shifted = value.astype(np.float32) - np.float32(spec.encoding["zero_point"])
    return np.asarray(shifted * np.float32(spec.encoding["scale"]))


def source_of(bundle: Bundle, registry: Registry) -> Source:
    """The bundle's source over its own copy of the checkpoint's small files; it has no weights."""
    model = bundle.manifest["recipe"]["model"]
    options = {"checkpoint": bundle.folder / SOURCE, **model["options"]}
    source: Source = registry.create("source", model["source"], options)
    return source


def rope_table(bundle: Bundle) -> tuple[Array, Array]:
    """cos and sin, (context, head_dim / 2) each, float32."""
    table = load_file(bundle.path(ROPE))
    return table["cos"], table["sin"]
