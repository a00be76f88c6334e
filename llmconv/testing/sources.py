"""Try a source on a checkpoint: whether module, weights, sizes and tokenizer go with each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmconv.decoding.decoder import Decoder
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.errors import CheckpointError
from llmconv.graph.trace import trace
from llmconv.passes.verifier import relative_error
from llmconv.prepare.trace import spread_ids
from llmconv.sources.model_config import ModelConfig
from llmconv.sources.source import Source
from llmconv.weights.store import WeightStore

TOKENS = 8


@dataclass(frozen=True)
class SourceTrial:
    """What a source gave.

    Attributes:
        config: the sizes.
        ids: that were read.
        logits: (tokens, vocabulary) float32.
        error: the largest difference of a logit from the source's own reference, as a share of the largest; None where
            the source has none.
    """

    config: ModelConfig
    ids: list[int]
    logits: Tensor
    error: float | None


def try_source(source: Source, *, tokens: int = TOKENS, bound: float = 1e-4) -> SourceTrial:
    """Trace the module, read every weight, and compute the logits of a few tokens.

    Args:
        source: over a checkpoint, e.g. `Registry.load().source("decoder", {"checkpoint": tiny_checkpoint(...)})`.
        bound: of `error`.

    Raises:
        CheckpointError: a weight is missing, has another shape or other rows than the whole has; the sizes are not
            those of the module; logits are no numbers or differ from the reference.
    """
    config, module, weights = source.config(), source.module(), source.weights()
    for name, parameter in module.named_parameters():
        _check_weight(name, tuple(parameter.shape), weights)
    source.tokenizer().within(config.vocabulary)
    if not source.description():
        raise CheckpointError(f"source '{source.name}': description gives no file; a bundle could not be run by itself")
    ids = spread_ids(config.vocabulary, range(1, tokens + 1))
    found = Decoder([TorchRunner(trace(module, tokens, tokens, "tried"), weights)], None).read(ids)
    if found.shape != (tokens, config.vocabulary):
        raise CheckpointError(
            f"source '{source.name}': logits of {tokens} tokens are {found.shape}, and config says {config.vocabulary}"
        )
    logits = torch.from_numpy(found)
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError(f"source '{source.name}': logits are not finite")
    error = _error(source.reference(), ids, logits)
    if error is not None and not error <= bound:
        raise CheckpointError(f"source '{source.name}': logits differ from its reference by {error:.2g} of the largest")
    return SourceTrial(config, ids, logits, error)


def _check_weight(name: str, asked: tuple[int, ...], weights: WeightStore) -> None:
    whole = weights.read(name)
    if not asked == tuple(whole.shape) == tuple(weights.shape(name)):
        raise CheckpointError(f"weight '{name}' is {tuple(whole.shape)}, and the module asks for {asked}")
    if whole.dtype != torch.float32:
        raise CheckpointError(f"weight '{name}' is read as {whole.dtype}; give float32")
    rows = slice(len(whole) // 2, len(whole))
    if not torch.equal(weights.read(name, rows), whole[rows]):
        raise CheckpointError(f"weight '{name}': rows {rows.start} to {rows.stop} are not those of the whole")


def _error(reference: nn.Module | str, ids: list[int], logits: Tensor) -> float | None:
    if isinstance(reference, str):
        return None
    with torch.no_grad():
        expected = reference(torch.tensor([ids], dtype=torch.int32))[0]
    return relative_error(expected.float().numpy(), logits.numpy())
