"""Bytes and seconds for people."""

import re
from typing import Literal

Unit = Literal["B", "s"]


def quantity(value: float, unit: Unit) -> str:
    """Bytes, or seconds far below one."""
    return size(value) if unit == "B" else f"{value * 1e3:.2g} ms"


def size(count: float) -> str:
    """Bytes, in powers of ten."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def bytes_of(text: str) -> int | None:
    """What `size` writes, such as "1.5GB"; a number alone is bytes. None of what is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?([KMG]?)B?", text.strip(), re.IGNORECASE)
    return round(float(found[1]) * 1000 ** " KMG".index(found[2].upper() or " ")) if found else None


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
