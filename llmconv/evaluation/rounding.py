"""What rounding costs value by value: each activation against itself on its grid."""

from __future__ import annotations

import re
from collections import defaultdict

from torch import Tensor, fx

from llmconv.encodings.noise import Noise
from llmconv.encodings.value import Encodings
from llmconv.graph.model import name_of

_HEAD = re.compile(r"\.h\d+")


class RoundingNoise:
    """Observes a run: every value that has an encoding, before and after it is rounded; heads count as one tensor.

    Attributes:
        noise: by structural name, without heads.
    """

    def __init__(self, encodings: Encodings | None) -> None:
        self.encodings = encodings.values if encodings is not None else {}
        self.noise: defaultdict[str, Noise] = defaultdict(Noise)

    def observe(self, node: fx.Node, value: Tensor) -> None:
        """Take a value that has not been rounded yet."""
        encoding = self.encodings.get(name_of(node))
        if encoding is not None:
            rounded = encoding.fake_quantize(value)
            self.noise[_HEAD.sub("", name_of(node))].add(value.numpy(), rounded.numpy())
