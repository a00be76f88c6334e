"""One greedy text, whatever runs the bundle: torch, ONNX Runtime, the HTP simulator, Genie, ONNX Runtime GenAI."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest

from llmconv import Bundle, Registry, Sampling
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.evaluation.agreement import Comparison
from llmconv.evaluation.subject import Subject
from llmconv.proof.on_others import NEAR
from llmconv.runtimes.runtime import source_of

PROMPTS = (
    "Return the",
    "The module provides a class that represents",  # a part of one run of the prompt graph
    "Raised when an operation runs out of memory. The associated value is a string that says what kind of operation "
    "ran out of memory, and the interpreter may not always be able to recover",  # more than one run
)
TOKENS = 24
OTHERS = ("onnxruntime", "qnn", "genie", "genai")


@cache
def registry() -> Registry:
    return Registry.load()


@pytest.fixture(scope="module")
def prompts(tiny_bundle: Bundle) -> list[list[int]]:
    source = source_of(tiny_bundle, registry())
    config, tokenizer = source.config(), source.tokenizer()
    return [[config.bos, *tokenizer.encode(text)] for text in PROMPTS]


def written(bundle: Bundle, runtime: str, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    eos = bundle.config.eos
    opener = registry().create("runtime", runtime, {})
    assert opener.lacks(bundle) is None
    texts = []
    with opener.dialog(bundle, Sampling(), eos) as dialog:
        for prompt in prompts:
            dialog.reset()
            texts.append(list(dialog.query(prompt, TOKENS)))
    return texts


@pytest.fixture(scope="module")
def by_torch(tiny_bundle: Bundle, prompts: list[list[int]]) -> list[list[int]]:
    """What the fake-quantized graphs write."""
    return written(tiny_bundle, "torch", prompts)


def gap(bundle: Bundle, read: Sequence[int], one: int, other: int) -> float:
    """How far apart the graph finds two tokens after some that are read, in what roundings move a logit by."""
    subject = Subject(bundle, registry(), lambda _stage, _item: None)
    model = subject.quantized
    rounded, exact = (
        subject.decoder(TorchRunner(model.graphs["token"], model.weights, encodings)).read(read)[-1:]
        for encodings in (model.encodings, None)
    )
    cost = Comparison()
    cost.add_logits(rounded, exact)
    return float(abs(rounded[-1, one] - rounded[-1, other]) / cost.rms)


@pytest.mark.parametrize("runtime", OTHERS)
def test_same_tokens(
    tiny_bundle: Bundle, genai_tiny: Bundle, prompts: list[list[int]], by_torch: list[list[int]], runtime: str
) -> None:
    bundle = genai_tiny if runtime == "genai" else tiny_bundle  # the same bundle, with GenAI's form beside it
    for prompt, expected, found in zip(prompts, by_torch, written(bundle, runtime, prompts), strict=True):
        assert len(expected) > 3
        apart = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
        if apart is None:
            assert len(found) == len(expected)
        else:  # two implementations of one quantized graph differ by its roundings, and so may choose either
            apart_by = gap(tiny_bundle, [*prompt, *expected[:apart]], expected[apart], found[apart])
            assert apart_by <= NEAR, (
                f"{runtime} parts from torch at token {apart}, {apart_by:.1f} times the noise apart"
            )
