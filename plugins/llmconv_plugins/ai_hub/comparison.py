"""How far what a device computes is from what ONNX Runtime computes on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.bundle import PartSpec, TensorSpec, dequantize
from llmconv.decoding import Arrays
from llmconv.encodings import Noise

KV, KV_BITS = "keys and values", 8
_KINDS = {"new_key": KV, "new_value": KV}


@dataclass
class Difference:
    """Sums over the outputs of one kind.

    Attributes:
        off: 8-bit elements that are more than one step apart, of `count`.
    """

    noise: Noise = field(default_factory=Noise)
    off: int = 0
    count: int = 0

    @property
    def sqnr(self) -> str:
        """In decibels, for the report."""
        return "equal" if self.noise.noise == 0 else f"{self.noise.sqnr:.1f} dB"

    def add(self, expected: NDArray[Any], found: NDArray[Any], spec: TensorSpec) -> None:
        """Compare one output, both of them as floats."""
        self.noise.add(expected, found)
        if spec.encoding is not None and spec.encoding.bits == KV_BITS:
            self.off += int((np.abs(expected - found) > 1.5 * spec.encoding.scale).sum())  # one step, in floats
            self.count += expected.size


def compare(part: PartSpec, expected: Arrays, found: Arrays) -> dict[str, Any]:
    """What a report says of one part's outputs.

    Args:
        found: the device's, integers as the binary has them, or floats where the service has dequantized them.

    Returns:
        SQNR by kind of output; the share of 8-bit keys and values more than one step off; and the outputs that are
        not there or of another size.
    """
    kinds: dict[str, Difference] = {}
    missing = []
    for spec in part.outputs:
        theirs = found.get(spec.name)
        if theirs is None or theirs.size != np.prod(spec.shape):
            missing.append(spec.name)
            continue
        whole = theirs if np.issubdtype(theirs.dtype, np.floating) else dequantize(theirs, spec)
        mine = dequantize(expected[spec.name], spec)
        kinds.setdefault(_KINDS.get(spec.kind, spec.kind), Difference()).add(mine, whole.reshape(mine.shape), spec)
    row: dict[str, Any] = {"SQNR": {kind: difference.sqnr for kind, difference in kinds.items()}}
    counted = kinds.get(KV, Difference())
    row["KV off"] = f"{counted.off / counted.count:.3%}" if counted.count else "no 8-bit keys or values"
    return row | ({"Not compared": missing, "Device's outputs": sorted(found)} if missing else {})
