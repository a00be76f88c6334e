"""What rounding costs value by value: each activation against itself on its grid, and what its range leaves out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from torch import Tensor, fx

from llmconv.decoding.decoder import MASKED
from llmconv.encodings.noise import Noise
from llmconv.encodings.value import Encodings
from llmconv.graph.model import name_of

_HEAD = re.compile(r"\.h\d+")


class RoundingNoise:
    """Observes a run: every value that has an encoding, before and after it is rounded; heads count as one tensor.

    Attributes:
        noise: by structural name, without heads.
        beyond: how many of a value's numbers lie outside its range, by the same names.
        seen: how many numbers of a value there were.
    """

    def __init__(self, encodings: Encodings | None) -> None:
        self.encodings = encodings.values if encodings is not None else {}
        self.noise: defaultdict[str, Noise] = defaultdict(Noise)
        self.beyond: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def observe(self, node: fx.Node, value: Tensor) -> None:
        """Take a value that has not been rounded yet."""
        encoding = self.encodings.get(name_of(node))
        if encoding is not None:
            if float(value.min()) < MASKED / 2:
                value = value[value > MASKED / 2]  # what the mask hides is no number of the model
            name, rounded = _HEAD.sub("", name_of(node)), encoding.fake_quantize(value)
            self.noise[name].add(value.numpy(), rounded.numpy())
            self.seen[name] += value.numel()
            # a number in range is half a step from its grid at most, and float32 adds a few ulp of its own
            self.beyond[name] += int(((rounded - value).abs() > 0.501 * encoding.scale + 1e-6 * value.abs()).sum())

    @property
    def clipped(self) -> dict[str, float]:
        """The share of each value's numbers that lie outside its range, of those that have some, the largest first."""
        shares = {name: count / self.seen[name] for name, count in self.beyond.items() if count}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))
