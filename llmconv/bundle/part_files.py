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
from llmconv.encodings.grid import Block
from llmconv.encodings.noise import Noise
from llmconv.weights.read_ahead import ReadAhead
from llmconv.weights.store import WeightStore

_WAITING = 2  # weights that wait to be quantized

Encode = Callable[[str, torch.Tensor], Iterable[Block]]  # a weight by name, whole, to what its part file takes


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
    def while_reading(self, part: int, parts: int, encode: Encode, order: Sequence[str]) -> Iterator[WeightStore]:
        """A store whose weights are quantized and written, in a thread, as they are read whole.

        Args:
            encode: quantizes a weight.
            order: names in the order of reading.
        """
        file = self.open(part, parts)
        with ReadAhead(self.weights, order) as ahead, ThreadPoolExecutor(1, "quantize") as thread:
            store = _Tee(ahead, file, encode, thread, deque())
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
        """Of each weight: its part, its bits, its bytes with scales, and the SQNR of its rounding in dB.

        The SQNR is None for floats, and where rounding changed nothing.
        """
        return {
            name: {
                "part": part,
                "bits": placed.bits,
                "bytes": placed.row_bytes * placed.rows + 4 * len(placed.scale),
                "sqnr": file.rounding.get(name, Noise()).decibels,
            }
            for part, file in self._files.items()
            for name, placed in file.placed.items()
        }

    def _path(self, part: int, parts: int) -> Path:
        return self.folder / f"part_{part + 1}_of_{parts}.data"


@dataclass(frozen=True)
class _Tee:
    store: WeightStore
    file: WeightFile
    encode: Encode
    thread: ThreadPoolExecutor
    waiting: deque[Future[None]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        weight = self.store.read(name, rows)
        if rows is None:
            while len(self.waiting) >= _WAITING:
                self.waiting.popleft().result()
            self.waiting.append(self.thread.submit(self._write, name, weight))
        return weight

    def _write(self, name: str, weight: torch.Tensor) -> None:
        if name not in self.file.placed:
            self.file.write(name, tuple(weight.shape), self.encode(name, weight))

    def sha256(self, name: str) -> str | None:
        return self.store.sha256(name)

    def finish(self) -> None:
        while self.waiting:
            self.waiting.popleft().result()
