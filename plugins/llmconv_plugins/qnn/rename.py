"""Give the graphs of a context binary their exact names, in place."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from llmconv import BackendError

PLACES = 3  # where a graph's name stands in a binary of QAIRT 2.51
WITH_LENGTH = 2  # of them are preceded by the name's length, u32


def rename_graphs(binary: Path, names: Mapping[str, str]) -> None:
    """Overwrite each name by a shorter one, NULs behind it, and correct the lengths before it.

    Raises:
        BackendError: a name does not stand where this version of the compiler puts it, or is too long.
    """
    data = bytearray(binary.read_bytes())
    for old, new in names.items():
        was, now = old.encode(), new.encode()
        if len(now) > len(was):
            raise BackendError(f"graph name '{new}' is longer than {len(was)} characters; shorten the graph's name")
        places = _find(data, was)
        lengths = 0
        for place in places:
            data[place : place + len(was)] = now.ljust(len(was), b"\0")
            if struct.unpack_from("<I", data, place - 4)[0] == len(was):
                struct.pack_into("<I", data, place - 4, len(now))
                lengths += 1
        if (len(places), lengths) != (PLACES, WITH_LENGTH):
            raise BackendError(
                f"graph '{new}': its name stands {len(places)} times in the binary, {lengths} with a length, instead of "
                f"{PLACES} and {WITH_LENGTH}; this version of the QNN compiler is not supported"
            )
    binary.write_bytes(data)


def _find(data: bytearray, text: bytes) -> list[int]:
    places, at = [], data.find(text)
    while at != -1:
        places.append(at)
        at = data.find(text, at + 1)
    return places
