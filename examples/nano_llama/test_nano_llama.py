from collections.abc import Callable
from pathlib import Path

import torch
from llmconv_nano_llama import NanoLlama, register_families

from llmconv import Registry
from llmconv.sources import Source
from llmconv.testing import try_source


def source(checkpoint: Path) -> Source:
    registry = Registry.load()  # without this plugin, where it is not installed
    made = registry.create("source", registry.source_for(checkpoint), {"checkpoint": checkpoint})
    made.know({kind: family for family in register_families() for kind in family.types})
    return made


def test_module_weights_and_tokenizer_go_together(llmconv_checkpoint: Callable[..., Path]) -> None:
    trial = try_source(source(llmconv_checkpoint(NanoLlama)))
    assert trial.config.family == "nano_llama"
    assert trial.logits.abs().max() > 1


def test_logits_are_scaled(llmconv_checkpoint: Callable[..., Path]) -> None:
    checkpoint = llmconv_checkpoint(NanoLlama)
    plain = try_source(source(checkpoint)).logits
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace("{", '{"logit_factor": 3.0,', 1))
    torch.testing.assert_close(try_source(source(checkpoint)).logits, 3 * plain)
