"""A real chat model from its GGUF file to the right answer."""

from __future__ import annotations

import pytest

from llmconv import Bundle, Registry, open_chat
from llmconv.evaluation.subject import Subject
from llmconv_plugins.sources.decoder_source import DecoderSource

pytestmark = pytest.mark.slow

# What follows hangs on the last bits of calibration, which differ between processors.
ANSWER = "The capital of France is Paris"


def test_every_check_of_the_proof_holds(smollm2_bundle: Bundle) -> None:
    proof = smollm2_bundle.report["proof"]
    assert [c for c in proof if c["passed"] is False] == []
    assert {c["step"] for c in proof if c["passed"]} == {1, 2, 3, 6}


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_it_knows_the_capital_of_france(smollm2_bundle: Bundle, runtime: str) -> None:
    with open_chat(smollm2_bundle, runtime, limit=12) as chat:
        assert "".join(chat.say("What is the capital of France?").pieces).startswith(ANSWER)


def test_its_tokens_are_those_of_the_model(smollm2_bundle: Bundle) -> None:
    """As the model's own tokenizer.json gives them."""
    tokenizer = Subject(smollm2_bundle, Registry.load(), lambda *_: None).described.tokenizer
    assert tokenizer.begin == ()
    for text, ids in (
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
    ):
        assert tokenizer.encode(text) == ids
    assert smollm2_bundle.config.eos == (2,)


def test_its_small_files_are_read_without_its_weights(smollm2_bundle: Bundle) -> None:
    copy = DecoderSource(smollm2_bundle.folder / "source").config()
    assert (copy.layers, copy.hidden, copy.heads, copy.kv_heads, copy.vocabulary) == (30, 576, 9, 3, 49152)
