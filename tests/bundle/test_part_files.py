"""Weights that are quantized and written while others are read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from llmconv import LoweringError
from llmconv.bundle.part_file import WeightFile
from llmconv.bundle.part_files import PartFiles
from llmconv.encodings import WeightEncoding
from llmconv.weights import Affine, Derived, DictStore, Stored

NAMES = ["a", "b", "c", "d"]
SECONDS = 20  # in which another thread gets its turn, however busy the machine


def store(columns: int = 4) -> DictStore:
    return DictStore({name: torch.full((2, columns), float(i + 1)) for i, name in enumerate(NAMES)})


def test_the_reader_goes_on_while_a_weight_is_quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, take = threading.Event(), WeightFile.take

    def wait_for_the_next(self: WeightFile, name: str, weight: torch.Tensor) -> None:
        if name == "a":
            assert read.wait(SECONDS)  # never, were the next weight read after this one is written
        take(self, name, weight)

    monkeypatch.setattr(WeightFile, "take", wait_for_the_next)
    encodings = {name: WeightEncoding(8) for name in NAMES}
    with PartFiles(tmp_path, store()) as files, files.while_reading(0, 1, encodings, NAMES) as weights:
        weights.read("a")
        weights.read("b")
        read.set()
        weights.read("c")
        weights.read("d")
    assert set(files.figures()) == set(NAMES)


def test_a_weight_that_could_not_be_written_is_an_error_at_the_end(tmp_path: Path) -> None:
    encodings = {name: WeightEncoding(4) for name in NAMES}
    with PartFiles(tmp_path, store(columns=3)) as files:
        reading = files.while_reading(0, 1, encodings, NAMES)
        weights = reading.__enter__()
        weights.read("d")
        with pytest.raises(LoweringError, match="weight 'd' of shape"):
            reading.__exit__(None, None, None)


@pytest.mark.parametrize("restored", [False, True])
def test_what_is_written_is_read_from_the_weights_as_passes_left_them(tmp_path: Path, restored: bool) -> None:
    with PartFiles(tmp_path, store()) as files:
        if restored:
            files.open(0, 1, {}).place("a")
            written = files.written(0)[1]
    with PartFiles(tmp_path, store()) as files:
        if restored:
            files.restore(0, 1, written)
        files.weights = Derived(files.weights, {"twice": Affine(Stored("b"), 2.0)})
        placed = files.open(0, 1, {}).place("twice")
        files.written(0)
        data = next(tmp_path.iterdir()).read_bytes()[placed.offset : placed.offset + 2 * placed.row_bytes]
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.float32), torch.full((8,), 4.0))
