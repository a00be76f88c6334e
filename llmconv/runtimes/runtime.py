"""What a runtime plugin does: run a bundle's graphs; and what all of them share, the walk through the parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from safetensors.numpy import load_file

from llmconv.bundle.adapters import adapter_table
from llmconv.bundle.bundle import ROPE, SOURCE, Bundle
from llmconv.decoding.decoder import Array, Decoder, LongText, Runner
from llmconv.decoding.dialog import DecoderDialog, Dialog
from llmconv.decoding.generate import Sampler
from llmconv.graph.model import ROTARIES
from llmconv.plugins.frame import Framed
from llmconv.sources.sampling import Sampling
from llmconv.sources.source import Source

if TYPE_CHECKING:
    from llmconv.plugins.registry import Registry


@dataclass(frozen=True)
class Runtime(Framed, ABC):
    """Runs bundles. A subclass is a frozen dataclass without options.

    Attributes:
        follows_schemas: whether its dialogs hold what they write to `Sampling.schema`.
    """

    name: ClassVar[str]
    follows_schemas: ClassVar[bool] = False

    def lacks(self, bundle: Bundle) -> str | None:
        """What the bundle lacks that this runtime needs, if anything."""
        return None

    @abstractmethod
    def dialog(self, bundle: Bundle, sampling: Sampling, eos: Sequence[int]) -> AbstractContextManager[Dialog]:
        """A conversation with a bundle, its `adapter` switched on, nothing read yet; what it holds is freed at the end.

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
        long = long_text(bundle)
        with self.open(bundle) as runners:
            rows = long.length + max(runner.ar for runner in runners) if long else None
            decoder = Decoder(runners, rope_table(bundle, rows), long, adapter_table(bundle))
            yield DecoderDialog(decoder, Sampler(sampling), eos)


def source_of(bundle: Bundle, registry: Registry) -> Source:
    """The bundle's source over its own copy of the checkpoint's small files; it has no weights."""
    model = bundle.manifest["recipe"]["model"]
    options = {"checkpoint": bundle.folder / SOURCE, **model["options"]}
    return registry.source(model["source"], options)


def rope_table(bundle: Bundle, rows: int | None = None) -> dict[str, Array]:
    """By kind of input, cos and sin, (context, channels that are turned / 2) each, float32.

    Args:
        rows: instead of the context.
    """
    found = dict(load_file(bundle.path(ROPE)))
    if rows is None:
        return found
    encodings = {t.kind: t.encoding for g in bundle.graphs.values() for part in g.parts for t in part.inputs}
    tables: dict[str, Array] = {}
    for kinds, rope in zip(ROTARIES.values(), bundle.config.ropes, strict=False):
        filled = rope.filled(rows, encodings.get(kinds[0]))
        tables |= {kind: table.numpy() for kind, table in zip(kinds, filled, strict=True)}
    return {name: tables[name] for name in found}


def long_text(bundle: Bundle) -> LongText | None:
    """How long a conversation may be beyond the context, where the recipe says so."""
    chat = bundle.manifest["recipe"].get("chat", {})
    return LongText(chat["length"], chat["sinks"]) if chat.get("length") else None
