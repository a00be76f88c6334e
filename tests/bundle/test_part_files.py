"""Weights that are quantized and written while others are read."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmconv import LoweringError
from llmconv.bundle.part_file import read_rows
from llmconv.bundle.part_files import PartFiles
from llmconv.encodings import Block, Encoded, Grid, PerRow, WeightEncoding
from llmconv.quantization.nearest import encoded_blocks, nearest_blocks
from llmconv.weights import Affine, Derived, DictStore, Stored

NAMES = ["a", "b", "c", "d"]
HELD = 5  # weights at once: in use or about to wait, two that wait, two read ahead
SECONDS = 20  # in which another thread gets its turn, however busy the machine


def store(columns: int = 4) -> DictStore:
    return DictStore({name: torch.full((2, columns), float(i + 1)) for i, name in enumerate(NAMES)})


def eight_bits(name: str, weight: torch.Tensor, encoded: Encoded | None) -> Iterator[Block]:
    return nearest_blocks(weight, WeightEncoding(8))


def test_the_reader_goes_on_while_a_weight_is_quantized(tmp_path: Path) -> None:
    read = threading.Event()

    def encode(name: str, weight: torch.Tensor, encoded: Encoded | None) -> Iterator[Block]:
        if name == "a":
            assert read.wait(SECONDS)  # never, were the next weight read after this one is written
        yield from eight_bits(name, weight, encoded)

    with PartFiles(tmp_path, store()) as files, files.while_reading(0, 1, encode, NAMES) as weights:
        weights.write("a", weights.read("a"))
        weights.write("b", weights.read("b"))
        read.set()
        weights.write("c", weights.read("c"))
        weights.write("d", weights.read("d"))
    assert set(files.figures()) == set(NAMES)


def test_only_what_is_written_lies_in_the_file_and_once(tmp_path: Path) -> None:
    with PartFiles(tmp_path, store()) as files, files.while_reading(0, 1, eight_bits, NAMES) as weights:
        for name in NAMES:
            weights.read(name)
        for _ in range(2):
            weights.write("b", weights.read("b"))
    assert set(files.figures()) == {"b"}
    assert (tmp_path / "part_1_of_1.data").stat().st_size == 2 * 4 + 2 * 4  # integers and scales of two rows


def test_a_weight_on_its_grid_is_written_as_it_is(tmp_path: Path) -> None:
    given = Encoded(torch.tensor([[1, -8, 7, 0]], dtype=torch.int8), torch.tensor([0.5]), 0, Grid(4, PerRow()))

    def encode(name: str, weight: torch.Tensor, encoded: Encoded | None) -> Iterator[Block]:
        assert encoded is given
        return encoded_blocks(weight, encoded)

    with PartFiles(tmp_path, store()) as files, files.while_reading(0, 1, encode, NAMES) as weights:
        weights.write("a", torch.full((1, 4), 9.0), given)
    placed = files.open(0, 1).placed["a"]
    with (tmp_path / "part_1_of_1.data").open("rb") as file:
        assert torch.equal(read_rows(file, placed), given.dequantize())


def test_a_weight_that_could_not_be_written_is_an_error_at_the_end(tmp_path: Path) -> None:
    def encode(name: str, weight: torch.Tensor, encoded: Encoded | None) -> Iterator[Block]:
        return nearest_blocks(weight, WeightEncoding(4))

    with PartFiles(tmp_path, store(columns=3)) as files:
        reading = files.while_reading(0, 1, encode, NAMES)
        weights = reading.__enter__()
        weights.write("d", weights.read("d"))
        with pytest.raises(LoweringError, match="weight 'd' of shape"):
            reading.__exit__(None, None, None)


def test_no_more_weights_wait_to_be_quantized_than_memory_is_meant_to_hold(tmp_path: Path) -> None:
    go_on, names = threading.Event(), [str(i) for i in range(12)]
    alive: list[weakref.ref[torch.Tensor]] = []

    class Fresh(DictStore):
        def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
            weight = super().read(name, rows).clone()
            alive.append(weakref.ref(weight))
            return weight

    def encode(name: str, weight: torch.Tensor, encoded: Encoded | None) -> Iterator[Block]:
        assert go_on.wait(SECONDS)
        return eight_bits(name, weight, encoded)

    given = Fresh({name: torch.ones(2, 4) for name in names})
    with PartFiles(tmp_path, given) as files, files.while_reading(0, 1, encode, names) as weights:

        def read_all() -> None:
            for name in names:
                weights.write(name, weights.read(name))

        reader = threading.Thread(target=read_all)
        reader.start()
        reader.join(0.2)  # it could read them all meanwhile, if nothing held it back
        held = sum(weight() is not None for weight in alive)
        go_on.set()
        reader.join()
    assert 1 < held <= HELD
    assert set(files.figures()) == set(names)


def test_what_is_written_is_read_from_the_weights_as_passes_left_them(tmp_path: Path) -> None:
    with PartFiles(tmp_path, store()) as files:
        files.weights = Derived(files.weights, {"twice": Affine(Stored("b"), 2.0)})
        with files.while_reading(0, 1, eight_bits, ["twice"]) as weights:
            read = weights.read("twice")
            weights.write("twice", read)
        assert torch.equal(read, 2 * store().read("b"))
        assert set(files.figures()) == {"twice"}
