"""Hashes taken before anybody reads: those of reading, of files that stay as they are, and no longer than needed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llmconv.weights import Derived, SafetensorsStore, Stored, StoreUnion, safetensors
from llmconv.weights.hashing import hash_ahead, hashed_ahead

ROOM = 1 << 20
WAIT = 30  # seconds, at most
SIZE = 4 * 8  # bytes of a tensor here


def tensor(seed: int) -> torch.Tensor:
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))


def digest(seed: int) -> str:
    return hashlib.new("sha256", tensor(seed).numpy().data).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"a": tensor(0), "b": tensor(1)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is hashed from here on, each piece."""
    pieces: list[bytes] = []

    class Watched:
        def __init__(self) -> None:
            self.of = hashlib.new("sha256")

        def update(self, data: Any) -> None:
            pieces.append(bytes(data))
            self.of.update(data)

        def hexdigest(self) -> str:
            return self.of.hexdigest()

    monkeypatch.setattr(safetensors.hashlib, "sha256", Watched)
    return pieces


def test_reading_takes_the_hash_and_hashes_nothing(file: Path, hashed: list[bytes]) -> None:
    store = SafetensorsStore([file])
    assert hash_ahead(store, ROOM, Event()) == ROOM - 2 * SIZE
    assert store.sha256("a") is None, "not read yet"
    hashed.clear()
    assert torch.equal(store.read("a"), tensor(0))
    assert store.sha256("a") == digest(0)
    assert hashed == []


def test_integers_that_stand_for_weights_take_it_as_well(file: Path, hashed: list[bytes]) -> None:
    store = SafetensorsStore([file])
    hash_ahead(store, ROOM, Event())
    hashed.clear()
    store.stored("a")
    assert store.sha256("a") == digest(0)
    assert hashed == []


def test_a_file_that_was_written_to_meanwhile_is_hashed_anew(file: Path) -> None:
    store = SafetensorsStore([file])
    hash_ahead(store, ROOM, Event())
    before = file.stat().st_mtime_ns
    save_file({"a": tensor(2), "b": tensor(1)}, file)
    os.utime(file, ns=(before + 1, before + 1))
    store.read("a")
    assert store.sha256("a") == digest(2)


def test_what_has_no_room_is_hashed_as_it_is_read(file: Path, hashed: list[bytes]) -> None:
    store = SafetensorsStore([file])
    assert hash_ahead(store, 2 * SIZE - 1, Event()) == 0
    assert sum(map(len, hashed)) == SIZE
    store.read("b")
    assert store.sha256("b") == digest(1)


def test_it_ends_where_reading_begins(file: Path, hashed: list[bytes]) -> None:
    store = SafetensorsStore([file])
    store.read("a", slice(0, 1))
    hash_ahead(store, ROOM, Event())
    assert hashed == []


def test_it_ends_where_nobody_needs_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over, pieces = Event(), list[bytes]()

    class Telling:
        def update(self, data: Any) -> None:
            pieces.append(bytes(data))
            over.set()

    monkeypatch.setattr(safetensors, "_PIECE", 4)  # of which it takes twice as many bytes
    monkeypatch.setattr(safetensors.hashlib, "sha256", Telling)
    hash_ahead(SafetensorsStore([file]), ROOM, over)
    assert [len(piece) for piece in pieces] == [8]


def test_a_truncated_file_is_for_its_reader_to_name(file: Path) -> None:
    store = SafetensorsStore([file])
    file.write_bytes(file.read_bytes()[:-1])
    hash_ahead(store, ROOM, Event())
    store.read("a")
    assert store.sha256("a") == digest(0)
    with pytest.raises(Exception, match="ends inside tensor 'b'"):
        store.read("b")


def test_stores_over_others_hash_these(file: Path, tmp_path: Path, hashed: list[bytes]) -> None:
    save_file({"c": tensor(3)}, tmp_path / "more.safetensors")
    inner, other = SafetensorsStore([file]), SafetensorsStore([tmp_path / "more.safetensors"])
    store = StoreUnion({"base": Derived(inner, {"x": Stored("a")})}, other)  # type: ignore[dict-item]
    assert hash_ahead(store, ROOM, Event()) == ROOM - 3 * SIZE
    hashed.clear()
    for name in ("base/x", "base/b", "c"):
        store.read(name)
    assert [store.sha256(name) for name in ("base/x", "base/b", "c")] == [digest(0), digest(1), digest(3)]
    assert hashed == []


def test_an_interrupt_is_not_held_up() -> None:
    began = Event()

    class Slow:
        def hash_ahead(self, room: int, over: Event) -> int:
            began.set()
            assert over.wait(WAIT)
            return room

    def interrupted() -> None:
        with hashed_ahead(Slow(), ROOM):
            assert began.wait(WAIT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_store_that_cannot_is_left_alone() -> None:
    with hashed_ahead(object(), ROOM):
        pass
