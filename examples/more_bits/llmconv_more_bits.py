"""A preset of a scheme: 8 bits for the weights that llama.cpp's Q4_K_M gives more bits."""

from dataclasses import dataclass
from typing import ClassVar

from llmconv import hookimpl
from llmconv.quantization import Line, SchemePreset


@dataclass(frozen=True)
class MoreBits(SchemePreset):
    """The values of attention and the projection back from the MLP have 8 bits."""

    name = "more_bits"
    lines: ClassVar = {
        "layers.*.self_attn.v_proj.weight": Line(bits=8),
        "layers.*.mlp.down_proj.weight": Line(bits=8),
    }


@hookimpl
def register_schemes() -> list[type[SchemePreset]]:
    return [MoreBits]
