"""Whether a worker runs the code and the versions that the caller runs."""

from __future__ import annotations

from collections.abc import Mapping


def difference(worker: str, there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """How the environment of a worker is another, in a line; "" where it is the same."""
    wrong = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    if not wrong:
        return ""
    has, wanted = there.get(wrong[0], "missing"), here.get(wrong[0], "missing")
    more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
    return f"Dask worker {worker} differs: {wrong[0]} is {has} there and {wanted} here{more}; install the same"
