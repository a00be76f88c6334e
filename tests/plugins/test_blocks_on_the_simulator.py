"""A checkpoint of each kind of block, from its folder to binaries that the simulator proves."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_families import make, write_tokenizer

import llmconv

# What a decoder's blocks differ in, and a family that has it
BLOCKS = {
    "norms around both branches, gated gelu (tanh), capped scores and logits": "gemma2",
    "a second RoPE, norms of each head": "gemma3_text",
    "norms of the whole width, behind the branches": "olmo2",
    "attention and MLP beside each other, LayerNorm, layers without RoPE": "cohere2",
    "LayerNorm with bias, RoPE of half a head, plain gelu": "phi",
    "squared relu": "nemotron",
    "scalars on embedding, scores, branches and logits": "granite",
}


CHANGES = {"granite": ["passes.w4a16.kv_bits=16"]}  # one with the wider cache


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS.values())
def test_blocks_of_a_kind_are_proved_on_the_simulator(name: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / name
    make(name).save_pretrained(checkpoint)  # type: ignore[operator]
    write_tokenizer(checkpoint)
    registry = llmconv.Registry.load()
    chosen = llmconv.choose(llmconv.Wish(str(checkpoint), "Galaxy S23 Ultra", backend="qnn"), registry=registry)
    changes = [f"output.folder='{tmp_path / 'bundle'}'", "backend.twins=always", *CHANGES.get(name, [])]
    proof = llmconv.apply(llmconv.Recipe.loads(chosen.text, name, tmp_path, changes), registry=registry).report["proof"]
    assert [check for check in proof if check["passed"] is False] == []
    assert {check["step"] for check in proof if check["passed"]} == {1, 2, 3, 4, 5, 6}
