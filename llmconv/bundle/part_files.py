"""The weight files of all parts, filled while calibration reads the weights, or when lowering asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from llmconv.bundle.part_file import WeightFile
from llmconv.cores import OwnCores
from llmconv.encodings.grid import Block, Encoded
from llmconv.encodings.noise import Noise
from llmconv.weights.read_ahead import ReadAhead
from llmconv.weights.store import WeightStore

_WAITING = 2  # weights that wait to be quantized

Encode = Callable[[str, torch.Tensor, Encoded | None], Iterable[Block]]  # as of `llmconv.passes.context`


class PartFiles:
    """Files `part_<i>_of_<n>.data` in a folder; used as a context manager. Parts count from 0.

    Args:
        weights: the model's; an attribute, since passes may give the model others until the first is written.
    """

    def __init__(self, folder: Path, weights: WeightStore) -> None:
        self.folder, self.weights = folder, weights
        self._files: dict[int, WeightFile] = {}
        self._stack = ExitStack()

    def __enter__(self) -> PartFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self, part: int, parts: int) -> WeightFile:
        """A part's file, with what has been written to it."""
        if part not in self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._files[part] = self._stack.enter_context(WeightFile(self._path(part, parts)))
        return self._files[part]

    @contextmanager
    def while_reading(self, part: int, parts: int, encode: Encode, order: Sequence[str]) -> Iterator[WritingStore]:
        """A store whose weights are encoded and written in a thread.

        Args:
            encode: a weight by name, whole, and on its grid if a quantizer has put it there: what the file takes.
            order: names in the order of reading.
        """
        file = self.open(part, parts)
        with ReadAhead(self.weights, order) as ahead, OwnCores(1, "quantize") as thread:
            store = WritingStore(ahead, file, encode, thread, deque())
            yield store
            store.finish()

    def written(self, part: int) -> tuple[dict[Path, str], Any]:
        """The file of a part, complete on disk, with its sha256; and as JSON what lies where in it."""
        file = self._files[part]
        return {file.path: file.flush()}, {
            "index": file.index(),
            "rounding": {name: (n.signal, n.noise) for name, n in file.rounding.items()},
        }

    def restore(self, part: int, parts: int, written: Any) -> None:
        """Take over the file of a part that an earlier run has written."""
        file = WeightFile(self._path(part, parts))
        file.restore(written["index"])
        file.rounding |= {name: Noise(*sums) for name, sums in written["rounding"].items()}
        self._files[part] = self._stack.enter_context(file)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Of each weight: its part, its bits, the columns of its blocks, its bytes with scales, and its SQNR.

        The SQNR is that of its rounding, dB; None for floats, and where rounding changed nothing.
        """
        return {
            name: {
                "part": part,
                "bits": placed.bits,
                "block": placed.block,
                "bytes": placed.nbytes,
                "sqnr": file.rounding.get(name, Noise()).decibels,
            }
            for part, file in self._files.items()
            for name, placed in file.placed.items()
        }

    def _path(self, part: int, parts: int) -> Path:
        return self.folder / f"part_{part + 1}_of_{parts}.data"


@dataclass(frozen=True)
class WritingStore:
    """A store's weights, and a part's file that takes them."""

    store: WeightStore
    file: WeightFile
    encode: Encode
    thread: ThreadPoolExecutor
    waiting: deque[Future[None]]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A weight, or a range of its rows, as float32."""
        return self.store.read(name, rows)

    def sha256(self, name: str) -> str | None:
        """As the store has it."""
        return self.store.sha256(name)

    def write(self, name: str, weight: torch.Tensor, encoded: Encoded | None = None) -> None:
        """Have the thread write a weight, unless it is written; waits while others wait."""
        while len(self.waiting) >= _WAITING:
            self.waiting.popleft().result()
        self.waiting.append(self.thread.submit(self._write, name, weight, encoded))

    def _write(self, name: str, weight: torch.Tensor, encoded: Encoded | None) -> None:
        if name not in self.file.placed:
            self.file.write(name, tuple(weight.shape), self.encode(name, weight, encoded))

    def finish(self) -> None:
        """Wait until all is written."""
        while self.waiting:
            self.waiting.popleft().result()
