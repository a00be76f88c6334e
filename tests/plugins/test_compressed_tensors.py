"""Checkpoints that compressed-tensors itself has written: the numbers are those that it makes of them again."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmconv.weights import Coded
from llmconv_plugins.sources import DecoderSource

with warnings.catch_warnings():  # of what it imports
    warnings.simplefilter("ignore")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GROUP = {"strategy": "group", "group_size": 32}
TOKENS = {"num_bits": 8, "strategy": "token", "dynamic": True}  # activations: the format is then int-quantized
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, type]] = {
    "w4 by channel": ({"num_bits": 4, "strategy": "channel"}, None, Coded),
    "w4 by group": ({"num_bits": 4, **GROUP}, None, str),
    "w4 by group, zero points": ({"num_bits": 4, **GROUP, "symmetric": False}, None, str),
    "w4 by tensor, zero points": ({"num_bits": 4, "strategy": "tensor", "symmetric": False}, None, str),
    "w8 by channel": ({"num_bits": 8, "strategy": "channel"}, None, Coded),
    "w8 by tensor": ({"num_bits": 8, "strategy": "tensor"}, None, Coded),
    "w8a8": ({"num_bits": 8, "strategy": "channel"}, TOKENS, Coded),
}


def calibrate(linear: Any) -> None:
    """The library's own scales and zero points, of the weight's ranges."""
    args, weight = linear.quantization_scheme.weights, linear.weight.detach()
    if not args.symmetric:
        weight += weight.max() / 2  # no zero point is in the middle by chance
    rows = 1 if args.strategy == "tensor" else len(weight)
    columns = args.group_size if args.strategy == "group" else weight.numel() // rows
    parts = weight.reshape(rows, -1, columns)
    found = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
    for name, values in zip(("weight_scale", "weight_zero_point"), found, strict=True):
        if (own := getattr(linear, name, None)) is not None:
            own.data = values.reshape(own.shape).to(own.dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_library(tmp_path: Path, kind: str) -> None:
    weights, activations, coded = KINDS[kind]
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).float()
    given = {"weights": weights, "input_activations": activations}
    scheme = QuantizationScheme(targets=["Linear"], **{k: QuantizationArgs(**v) for k, v in given.items() if v})
    apply_quantization_config(model, QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"]))
    linears = {n: m for n, m in model.named_modules() if getattr(m, "quantization_scheme", None) is not None}
    for linear in linears.values():
        calibrate(linear)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    compressor.decompress_model(model)
    read = DecoderSource(tmp_path).weights()
    assert len(linears) == 7
    for name, linear in linears.items():
        own = f"{name.removeprefix('model.')}.weight"
        assert torch.equal(read.read(own), linear.weight.detach().float()), name
        assert isinstance(read.coded(own), coded), name
