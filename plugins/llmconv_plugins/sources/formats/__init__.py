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


def format_of(config: Keys) -> tuple[Table, Keys] | None:
    """What reads a checkpoint's quantized weights, with what the file says of them; None where it says nothing.

    Raises:
        CheckpointError: they are in a format that is not read.
    """
    said = next((config.table(key) for key in KEYS if config.get(key)), None)
    if said is None:
        return None
    method = said.get("quant_method", "compressed-tensors" if said.get("config_groups") else None)
    if method not in FORMATS:
        raise CheckpointError(
            f"{config.path}: quantization_config.quant_method = {method!r} is not implemented; "
            f"{', '.join(FORMATS)} are, and the model before it was quantized"
        )
    return FORMATS[method], said
