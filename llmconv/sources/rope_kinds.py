"""The ways in which checkpoints stretch RoPE to longer texts.

Computed on the CPU, also while a module is built on the meta device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmconv.errors import CheckpointError
from llmconv.sources.keys import Keys
from llmconv.sources.rope import Rope


def rope_from(table: Keys, theta: float, width: int, positions: int, original: int | None) -> tuple[Rope, int]:
    """The table that `rope_parameters`, or `rope_scaling`, describes, and up to how many positions it holds.

    Args:
        theta: the base, where the table has none.
        width: channels of a head that are turned.
        positions: that the model knows.
        original: that it knew before it was stretched, where the file says so outside of the table.

    Raises:
        CheckpointError: a kind that is not known, or a value of the wrong type.

    Source: transformers' modeling_rope_utils.py.
    """
    kind = table.get("rope_type", table.get("type", "default"))
    theta = table.positive("rope_theta", theta)
    if width % 2 or width < 2:
        raise CheckpointError(f"{table.path}: RoPE turns pairs of channels, not {width} of them")
    if kind == "longrope":  # short factors, as they are for texts that fit the original length
        n = original or table.integer("original_max_position_embeddings", positions)
        factors = torch.tensor(table.numbers("short_factor", width // 2), device="cpu")
        table.get("long_factor")
        attention = table.optional("attention_factor") or _longrope_factor(table, positions, n)
        return Rope(theta, _floats(1 / (factors * _powers(theta, width))), attention), min(positions, n)
    if kind == "yarn":
        n = original or table.integer("original_max_position_embeddings", positions)
        return _yarn(table, theta, width, positions, n), positions
    if kind == "llama3":
        n = original or table.integer("original_max_position_embeddings", positions)
        return Rope(theta, _floats(_llama3(table, _plain(theta, width), n))), positions
    if kind == "linear":
        return Rope(theta, _floats(_plain(theta, width) / table.positive("factor"))), positions
    if kind == "dynamic":  # stretches beyond the positions that the model knows, and we do not go there
        table.get("factor")
        if (alpha := table.optional("alpha")) is not None:  # Hunyuan's, which stretches at all lengths
            theta *= alpha ** (width / (width - 2))
        return Rope.plain(theta, width), positions
    if kind != "default":
        raise CheckpointError(f"{table.path}: RoPE of kind {kind!r} is not implemented")
    return Rope.plain(theta, width), positions


def _plain(theta: float, width: int) -> Tensor:
    return torch.tensor(Rope.plain(theta, width).frequencies, device="cpu")


def _powers(theta: float, width: int) -> Tensor:
    powers: Tensor = theta ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
    return powers


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def _longrope_factor(table: Keys, positions: int, original: int) -> float:
    stretch = table.optional("factor") or positions / original
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))


def _llama3(table: Keys, frequencies: Tensor, original: int) -> Tensor:
    """Slow ones divided by the factor, fast ones left, between them a mixture."""
    low, high = table.positive("low_freq_factor"), table.positive("high_freq_factor")
    turns = original * frequencies / (2 * math.pi)  # within the original length
    fast = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * ((1 - fast) / table.positive("factor") + fast)


def _yarn(table: Keys, theta: float, width: int, positions: int, original: int) -> Rope:
    stretch = table.optional("factor") or positions / original

    def pair(turns: float) -> float:
        """The pair of channels that turns so often within the original length."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = pair(table.optional("beta_fast") or 32)
    high = pair(table.optional("beta_slow") or 1)
    if table.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    slow = ((torch.arange(width // 2, device="cpu") - low) / (high - low or 0.001)).clamp(0, 1)
    frequencies = _plain(theta, width)
    mixed = frequencies / stretch * slow + frequencies * (1 - slow)
    return Rope(theta, _floats(mixed), _yarn_factor(table, stretch))


def _yarn_factor(table: Keys, stretch: float) -> float:
    def grown(by: float) -> float:
        return 1.0 if stretch <= 1 else 0.1 * by * math.log(stretch) + 1

    scale, over = table.optional("mscale"), table.optional("mscale_all_dim")
    ratio = grown(scale) / grown(over) if scale and over else grown(1.0)
    return table.optional("attention_factor") or ratio
