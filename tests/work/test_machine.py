"""Memory, disk and swap as files of the system say it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from llmconv.work import machine


@pytest.fixture(autouse=True)
def _system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system with 100 kB available and 50 kB of free swap."""
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * 1024))
    monkeypatch.setattr(machine.psutil, "swap_memory", lambda: SimpleNamespace(free=50 * 1024))


def test_memory_is_what_is_available_and_free_swap(tmp_path: Path) -> None:
    found = machine.memory(tmp_path)
    assert found == machine.Memory(100 * 1024, 50 * 1024)
    assert (found.total, found.unswapped) == (150 * 1024, 100 * 1024)


@pytest.mark.parametrize(
    ("limit", "used"), [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")]
)
def test_lower_limit_of_a_container_counts(tmp_path: Path, limit: str, used: str) -> None:
    folder = tmp_path if limit == "memory.max" else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    (folder / limit).write_text("70000\n")
    (folder / used).write_text("30000\n")
    found = machine.memory(tmp_path)
    assert (found.total, found.unswapped) == (40000, 40000)


def test_container_without_a_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("30000\n")
    assert machine.memory(tmp_path).limit is None


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert machine.disk_at_hand(tmp_path / "a" / "b") == pytest.approx(machine.disk_at_hand(tmp_path), rel=0.05)


def test_swap_commands_are_one_line_and_leave_room() -> None:
    commands = machine.swap_commands(int(2.5 * 2**30))
    assert commands.startswith("sudo fallocate -l 4G /swapfile")
    assert commands.count(" && ") == 3
    assert "\n" not in commands
