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


CGROUPS = {  # version: folder, limit, used, prefix of what the children of a group are counted in
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: (".", "memory.max", "memory.current", ""),
}


def _cgroup(root: Path, version: int, limit: str, used: int, **pages: int) -> None:
    """Files as the system has them."""
    folder, limited, taken, prefix = CGROUPS[version]
    counts = {"anon": 1, "active_file": 1, "inactive_file": 1} | {f"{prefix}{name}": n for name, n in pages.items()}
    (root / folder).mkdir(exist_ok=True)
    (root / folder / limited).write_text(f"{limit}\n")
    (root / folder / taken).write_text(f"{used}\n")
    (root / folder / "memory.stat").write_text("".join(f"{name} {count}\n" for name, count in counts.items()))


@pytest.mark.parametrize("version", CGROUPS)
def test_lower_limit_of_a_container_counts(tmp_path: Path, version: int) -> None:
    _cgroup(tmp_path, version, "70000", 30000, active_file=0, inactive_file=0)
    found = machine.memory(tmp_path)
    assert (found.total, found.unswapped) == (40000, 40000)


@pytest.mark.parametrize("version", CGROUPS)
def test_what_a_container_has_read_of_files_is_at_hand(tmp_path: Path, version: int) -> None:
    """The system drops file pages before memory is short."""
    _cgroup(tmp_path, version, "70000", 65000, active_file=10000, inactive_file=30000, mapped_file=5000)
    assert machine.memory(tmp_path).limit == 45000


def test_container_without_a_limit(tmp_path: Path) -> None:
    _cgroup(tmp_path, 2, "max", 30000)
    assert machine.memory(tmp_path).limit is None


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert machine.disk_at_hand(tmp_path / "a" / "b") == pytest.approx(machine.disk_at_hand(tmp_path), rel=0.05)


def test_swap_commands_are_one_line_and_leave_room() -> None:
    commands = machine.swap_commands(int(2.5 * 2**30))
    assert commands.startswith("sudo fallocate -l 4G /swapfile")
    assert commands.count(" && ") == 3
    assert "\n" not in commands
