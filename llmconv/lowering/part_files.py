"""The weight files of all parts, filled while calibration reads the weights, or when lowering asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from llmconv.checkpoint.read_ahead import ReadAhead
from llmconv.checkpoint.weights import WeightStore
from llmconv.graph.encodings import WeightEncoding
from llmconv.lowering.weight_file import WeightFile

_WAITING = 2  # weights that wait to be quantized


class PartFiles:
    """Files `part_<i>_of_<n>.data` in a folder; used as a context manager.

    Args:
        weights: of the checkpoint.
    """

    def __init__(self, folder: Path, weights: WeightStore) -> None:
        self.folder, self.weights = folder, weights
        self._files: list[WeightFile] = []
        self._stack = ExitStack()

    def __enter__(self) -> PartFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self, parts: int, encodings: dict[str, WeightEncoding]) -> list[WeightFile]:
        """The files, a part each; those that were opened before, if any."""
        if not self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            paths = [self.folder / f"part_{i + 1}_of_{parts}.data" for i in range(parts)]
            self._files = [self._stack.enter_context(WeightFile(path, self.weights, encodings)) for path in paths]
        for file in self._files:
            file.encodings = encodings
        return self._files

    @contextmanager
    def while_reading(
        self, encodings: dict[str, WeightEncoding], parts_of: Mapping[str, Collection[int]], order: Sequence[str]
    ) -> Iterator[WeightStore]:
        """A store whose weights are quantized and written, in a thread, as they are read.

        Args:
            parts_of: name -> the parts that use the weight.
            order: names in the order of reading.
        """
        files = self.open(1 + max(part for parts in parts_of.values() for part in parts), encodings)
        with ReadAhead(self.weights, order) as ahead, ThreadPoolExecutor(1, "quantize") as thread:
            store = _Tee(ahead, files, parts_of, thread, deque())
            yield store
            store.finish()


@dataclass(frozen=True)
class _Tee:
    store: WeightStore
    files: Sequence[WeightFile]
    parts_of: Mapping[str, Collection[int]]
    thread: ThreadPoolExecutor
    waiting: deque[Future[None]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        weight = self.store.read(name, rows)
        for part in self.parts_of.get(name, ()) if rows is None else ():
            while len(self.waiting) >= _WAITING:
                self.waiting.popleft().result()
            self.waiting.append(self.thread.submit(self.files[part].take, name, weight))
        return weight

    def finish(self) -> None:
        while self.waiting:
            self.waiting.popleft().result()
