"""Bytes and seconds for people."""

from typing import Literal

Unit = Literal["B", "s"]


def quantity(value: float, unit: Unit) -> str:
    """Bytes, or seconds far below one."""
    return size(value) if unit == "B" else f"{value * 1e3:.2g} ms"


def size(count: float) -> str:
    """Bytes, in powers of ten."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
