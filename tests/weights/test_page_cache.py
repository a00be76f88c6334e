"""Files that the system reads before anybody asks: in order, as far as there is room, and no longer than needed."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from llmconv.weights import page_cache

WAIT = 30  # seconds, at most
Asked = list[tuple[str, int, int]]  # of what file, from where, how many bytes


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(page_cache, "PIECE", 4)
    found = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for file in found:
        file.write_bytes(bytes(10))
    return found


def watched(monkeypatch: pytest.MonkeyPatch, answer: Any = lambda: None) -> Asked:
    """What the system is asked for from now on; `answer` takes as long as the disk."""
    asked: Asked = []

    def advise(descriptor: int, start: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, start, size))
        answer()

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return asked


def test_files_come_in_order_piece_by_piece(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    done = Event()
    asked = watched(monkeypatch, lambda: done.set() if len(asked) == 6 else None)
    with page_cache.coming(files, 1 << 20):
        assert done.wait(WAIT)
    assert asked == [(name, *piece) for name in ("a.bin", "b.bin") for piece in ((0, 4), (4, 4), (8, 2))]


def test_no_more_comes_than_there_is_room_for(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    done = Event()
    asked = watched(monkeypatch, lambda: done.set() if len(asked) == 4 else None)
    with page_cache.coming(files, 11):
        assert done.wait(WAIT)
    assert asked[3:] == [("b.bin", 0, 1)]


def test_it_ends_with_what_it_accompanies(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    began, slow = Event(), Event()

    def answer() -> None:
        began.set()
        slow.wait(1)  # of the disk, so that what raises comes first

    def interrupted() -> None:
        with page_cache.coming(files, 1 << 20):
            assert began.wait(WAIT)
            raise KeyboardInterrupt

    asked = watched(monkeypatch, answer)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(asked) == 1


def test_a_file_that_is_gone_is_for_its_reader_to_name(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    files[0].unlink()
    done = Event()
    asked = watched(monkeypatch, lambda: done.set() if len(asked) == 3 else None)
    with page_cache.coming(files, 1 << 20):
        assert done.wait(WAIT)
    assert {name for name, *_ in asked} == {"b.bin"}


def test_a_system_without_such_advice_is_not_asked(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    with page_cache.coming(files, 1 << 20):
        pass
