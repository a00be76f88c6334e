"""What this machine has at hand: memory, disk, and the commands that add swap."""

from __future__ import annotations

import gc
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmconv.heap import trim

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # what an old cgroup says for "no limit" is larger


@dataclass(frozen=True)
class Memory:
    """Memory that a process may still take, bytes.

    Attributes:
        available: without swapping anything out.
        swap: free swap.
        limit: what a container's limit leaves, swap not counted; None without a limit.
    """

    available: int
    swap: int
    limit: int | None = None

    @property
    def total(self) -> int:
        """All that is at hand."""
        return self._within(self.available + self.swap)

    @property
    def unswapped(self) -> int:
        """What is at hand without swap."""
        return self._within(self.available)

    def _within(self, free: int) -> int:
        return free if self.limit is None else min(free, self.limit)


def give_back_memory() -> None:
    """Return memory that is free inside this process to the system, before child processes need it; glibc can."""
    gc.collect()
    trim()


def memory(cgroup: Path = _CGROUP) -> Memory:
    """Memory at hand."""
    return Memory(psutil.virtual_memory().available, psutil.swap_memory().free, _left_by_cgroup(cgroup))


def _left_by_cgroup(folder: Path) -> int | None:
    """A container's limit less what it uses; version 2 of cgroups, then version 1.

    What it has read of files counts as used there, and the system drops that before memory is short.
    """
    for limit, used, stat, prefix in (
        ("memory.max", "memory.current", "memory.stat", ""),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
    ):
        try:
            bound, taken = int((folder / limit).read_text()), int((folder / used).read_text())
            counts = dict(line.split() for line in (folder / stat).read_text().splitlines())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        files = sum(int(counts.get(f"{prefix}{pages}_file", 0)) for pages in ("active", "inactive"))
        return max(0, bound - max(0, taken - files)) if bound < _UNLIMITED else None
    return None


def memory_at_hand() -> int:
    """Bytes of memory and swap that a process may still take."""
    return memory().total


def peak_memory() -> int:
    """The largest resident memory of this process so far, bytes; 0 where the system does not say.

    Linux's own figure, which psutil lacks; getrusage counts what the parent held when it forked.
    """
    if sys.platform == "linux":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415  not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def disk_at_hand(folder: Path) -> int:
    """Free bytes where a folder is, or will be made."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def swap_commands(lacking: int) -> str:
    """Commands that add that many bytes of swap, rounded up to whole GiB, and one GiB more to breathe."""
    gib = math.ceil(lacking / 2**30) + 1
    names = (Path(f"/swapfile{i or ''}") for i in range(100))
    file = next(name for name in names if not name.exists())
    return f"sudo fallocate -l {gib}G {file} && sudo chmod 600 {file} && sudo mkswap {file} && sudo swapon {file}"
