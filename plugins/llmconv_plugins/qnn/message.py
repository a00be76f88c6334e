"""Messages of named arrays through a pipe: a length, a JSON header of that length, then the arrays' bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

_LENGTH_BYTES = 8


def send(pipe: IO[bytes], header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write one message; `header` is any JSON object."""
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    index = [[name, array.dtype.str, list(array.shape)] for name, array in packed.items()]
    text = json.dumps({**header, "arrays": index}).encode()
    pipe.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
    for array in packed.values():
        pipe.write(array.tobytes())
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], Arrays]:
    """Read one message.

    Raises:
        EOFError: the other side is gone.
    """
    header = json.loads(_read(pipe, int.from_bytes(_read(pipe, _LENGTH_BYTES), "little")))
    arrays: Arrays = {}
    for name, dtype, shape in header.pop("arrays"):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(bytearray(_read(pipe, size)), dtype).reshape(shape)
    return header, arrays


def _read(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) != size:
        raise EOFError
    return data
