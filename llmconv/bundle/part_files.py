"""The weight files of all parts, filled while calibration reads the weights, or when lowering asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from llmconv.bundle.part_file import WeightFile
from llmconv.encodings.noise import decibels
from llmconv.encodings.value import WeightEncoding
from llmconv.weights.read_ahead import ReadAhead
from llmconv.weights.store import WeightStore

_WAITING = 2  # weights that wait to be quantized


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

    def open(self, part: int, parts: int, encodings: dict[str, WeightEncoding]) -> WeightFile:
        """A part's file, with what has been written to it."""
        if part not in self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = WeightFile(self._path(part, parts), self.weights, encodings)
            self._files[part] = self._stack.enter_context(file)
        self._files[part].encodings, self._files[part].weights = encodings, self.weights
        return self._files[part]

    @contextmanager
    def while_reading(
        self, part: int, parts: int, encodings: dict[str, WeightEncoding], order: Sequence[str]
    ) -> Iterator[WeightStore]:
        """A store whose weights are quantized and written, in a thread, as they are read whole; biases stay floats.

        Args:
            order: names in the order of reading.
        """
        file = self.open(part, parts, encodings)
        with ReadAhead(self.weights, order) as ahead, ThreadPoolExecutor(1, "quantize") as thread:
            store = _Tee(ahead, file, thread, deque())
            yield store
            store.finish()

    def written(self, part: int) -> tuple[dict[Path, str], Any]:
        """The file of a part, complete on disk, with its sha256; and as JSON what lies where in it."""
        file = self._files[part]
        return {file.path: file.flush()}, {"index": file.index(), "rounding": file.rounding}

    def restore(self, part: int, parts: int, written: Any) -> None:
        """Take over the file of a part that an earlier run has written."""
        file = WeightFile(self._path(part, parts), self.weights, {})
        file.restore(written["index"])
        file.rounding |= {name: (signal, noise) for name, (signal, noise) in written["rounding"].items()}
        self._files[part] = self._stack.enter_context(file)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Of each weight: its part, its bits, its bytes with scales, and the SQNR of its rounding in dB.

        The SQNR is None for floats, and where rounding changed nothing.
        """
        return {
            name: {
                "part": part,
                "bits": placed.bits,
                "bytes": placed.row_bytes * (placed.shape[0] if placed.shape else 1) + 4 * len(placed.scale),
                "sqnr": decibels(*file.rounding.get(name, (0.0, 0.0))),
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
    thread: ThreadPoolExecutor
    waiting: deque[Future[None]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        weight = self.store.read(name, rows)
        if rows is None:
            while len(self.waiting) >= _WAITING:
                self.waiting.popleft().result()
            self.waiting.append(self.thread.submit(self.file.take, name, weight))
        return weight

    def sha256(self, name: str) -> str | None:
        return self.store.sha256(name)

    def finish(self) -> None:
        while self.waiting:
            self.waiting.popleft().result()
