"""What a run brings to its passes, beside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from torch import Tensor

from llmconv.encodings.grid import Block, Encoded
from llmconv.plugins.registry import Kind, Registry
from llmconv.weights.low_rank import LowRankChanges
from llmconv.weights.store import WeightStore
from llmconv.work.executor import Workers
from llmconv.work.steps import Steps
from llmconv.work.threads import Threads

Encode = Callable[[str, Tensor, Encoded | None], Iterable[Block]]  # a weight by name, whole, to what a file takes


class WeightWriter(WeightStore, Protocol):
    """A store whose weights are written once they are quantized."""

    def write(self, name: str, weight: Tensor, encoded: Encoded | None = None) -> None:
        """Take a weight that has been read whole.

        Args:
            encoded: on the grid that a quantizer has found for it; else it is rounded to nearest where it has a grid.
        """
        ...


class WeightSink(Protocol):
    """Where quantized weights go; `llmconv.bundle.part_files.PartFiles`.

    Attributes:
        weights: the model's, as the passes so far have left them; set by whoever hands over the model.
    """

    weights: WeightStore

    def while_reading(
        self, part: int, parts: int, encode: Encode, order: Sequence[str]
    ) -> AbstractContextManager[WeightWriter]:
        """A store whose weights are written to a part's file, as `encode` gives them."""
        ...

    def written(self, part: int) -> tuple[dict[Path, str], Any]:
        """The files of a part that has been read, complete on disk, with sha256; as JSON what lies where in them."""
        ...

    def restore(self, part: int, parts: int, written: Any) -> None:
        """Take over the files of a part that an earlier run has written."""
        ...


def _create(kind: Kind, name: str, options: Mapping[str, Any]) -> Any:
    return Registry.load().create(kind, name, options)


@dataclass(frozen=True)
class PassContext:
    """What a run brings: a library user's is empty.

    Attributes:
        samples: of the calibration text, ids.
        sink: takes quantized weights while calibration reads them, so that they are read once.
        steps: keeps what a pass has finished, so that another run need not do it again.
        widths: gives the bits that the passes after the one that runs will give to values and weights, by structural
            name; what it does not name stays float32.
        hashed: gives the sha256 of the checkpoint's bytes of each weight that this run has read whole, by the source's
            name of it.
        hashes: the same of all runs together; passes add to it.
        create: makes a plugin that a pass names in `uses`, by kind, name and options.
        chosen: what passes have found on the samples and cannot find again without them, by names that begin with the
            pass's; a bundle keeps it, and whoever runs its passes again brings it.
        adapters: those that the host is to switch between, name -> what each changes of the source's tensors.
        workers: do what passes make tasks of.
    """

    samples: Sequence[Sequence[int]] = ()
    sink: WeightSink | None = None
    steps: Steps | None = None
    widths: Callable[[], Mapping[str, float]] = dict
    hashed: Callable[[], Mapping[str, str]] = dict
    hashes: dict[str, str] = field(default_factory=dict)
    create: Callable[[Kind, str, Mapping[str, Any]], Any] = _create
    chosen: dict[str, Tensor] = field(default_factory=dict)
    adapters: Mapping[str, LowRankChanges] = field(default_factory=dict)
    workers: Workers = field(default_factory=Threads)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for what nobody needs afterwards, beside the steps where there are some."""
        beside = None if self.steps is None else self.steps.folder
        if beside is not None:
            beside.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=beside) as folder:
            yield Path(folder)
