"""Memory, disk and swap as files of the system say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmconv.work import machine

MEMINFO = "MemTotal: 200 kB\nMemAvailable:    100 kB\nSwapTotal: 80 kB\nSwapFree:   50 kB\n"


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text(MEMINFO)
    return file


def test_memory_is_what_is_available_and_free_swap(meminfo: Path, tmp_path: Path) -> None:
    found = machine.memory(meminfo, tmp_path)
    assert found == machine.Memory(100 * 1024, 50 * 1024)
    assert found is not None
    assert found.total == 150 * 1024


@pytest.mark.parametrize(
    ("limit", "used"), [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")]
)
def test_lower_limit_of_a_container_counts(meminfo: Path, tmp_path: Path, limit: str, used: str) -> None:
    folder = tmp_path if limit == "memory.max" else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    (folder / limit).write_text("70000\n")
    (folder / used).write_text("30000\n")
    found = machine.memory(meminfo, tmp_path)
    assert found is not None
    assert found.total == 40000


def test_container_without_a_limit(meminfo: Path, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("30000\n")
    found = machine.memory(meminfo, tmp_path)
    assert found is not None
    assert found.limit is None


@pytest.mark.parametrize("text", [None, "", "MemAvailable: many kB\nSwapFree: 0 kB\n", "MemTotal: 1 kB\n"])
def test_system_that_does_not_say(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    assert machine.memory(tmp_path / "meminfo", tmp_path) is None


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert machine.disk_at_hand(tmp_path / "a" / "b") == pytest.approx(machine.disk_at_hand(tmp_path), rel=0.05)


def test_swap_commands_are_one_line_and_leave_room() -> None:
    commands = machine.swap_commands(int(2.5 * 2**30))
    assert commands.startswith("sudo fallocate -l 4G /swapfile")
    assert commands.count(" && ") == 3
    assert "\n" not in commands
