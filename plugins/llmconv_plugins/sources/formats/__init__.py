"""Checkpoints that are quantized already: what `quantization_config` says of their tensors, one layout a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmconv import CheckpointError
from llmconv.sources import Keys
from llmconv.weights import Checkpoint, Expression
from llmconv_plugins.sources.formats import compressed_tensors, gptq_awq

Table = Callable[[Keys, Checkpoint, list[str]], Mapping[str, Expression]]
KEYS = ("quantization_config", "compression_config")
FORMATS: dict[str, Table] = {
    "compressed-tensors": compressed_tensors.table,
    "gptq": gptq_awq.gptq,
    "awq": gptq_awq.awq,
}
ROW_BITS: dict[str, Callable[[Keys], int | None]] = {
    "compressed-tensors": compressed_tensors.row_bits,
    "gptq": gptq_awq.row_bits,
}


def format_of(config: Keys) -> tuple[Table, Keys] | None:
    """What reads a checkpoint's quantized weights, with what the file says of them; None where it says nothing.

    Raises:
        CheckpointError: they are in a format that is not read.
    """
    found = _said(config)
    return None if found is None else (FORMATS[found[0]], found[1])


def row_bits_of(config: Keys) -> int | None:
    """Bits of integers that have one scale a row and no zero points, which a grid always holds; None of others.

    Raises:
        CheckpointError: as of `format_of`.
    """
    found = _said(config)
    return None if found is None or found[0] not in ROW_BITS else ROW_BITS[found[0]](found[1])


def _said(config: Keys) -> tuple[str, Keys] | None:
    """The format and what the file says of it."""
    said = next((config.table(key) for key in KEYS if config.get(key)), None)
    if said is None:
        return None
    method = said.get("quant_method", "compressed-tensors" if said.get("config_groups") else None)
    if method not in FORMATS:
        raise CheckpointError(
            f"{config.path}: quantization_config.quant_method = {method!r} is not implemented; "
            f"{', '.join(FORMATS)} are, and the model before it was quantized"
        )
    return method, said
