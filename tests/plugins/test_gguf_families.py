"""Each architecture of llama.cpp that is of a family we have: a file computes what the model that was written does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_of_models import write_model
from tiny_families import LLAMA3, POSITIONS, VOCABULARY, make
from torch import nn
from transformers.utils import logging as transformers_logging

from llmconv.decoding import Decoder, TorchRunner
from llmconv.encodings import Noise
from llmconv.graph import trace
from llmconv_plugins.sources.decoder_source import DecoderSource
from llmconv_plugins.sources.gguf_config import MODEL_TYPES

pytestmark = pytest.mark.slow  # transformers alone takes seconds to import

EXACT = 100.0  # dB: float32 sums in another order; measured 115 and more
TOKENS = torch.randint(3, VOCABULARY, (40,), generator=torch.Generator().manual_seed(5)).tolist()
HEAD = {"head_dim": 12}  # as wide as hidden / heads, which files of some architectures do not say
SCALAR = {"query_pre_attn_scalar": 20}  # the width of a head, which llama.cpp takes for it
STRETCH = math.sqrt(1 + math.log(POSITIONS / (POSITIONS - 8)) / math.log(POSITIONS - 8))
LINEAR = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
LOCAL = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}

# tiny model, changes of its config; architecture, changes of the keys
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("llama", {}, "llama", {}),
    ("llama-biases", {}, "llama", {}),
    ("llama-llama3", {}, "llama", {}),
    ("llama-linear", {}, "llama", {}),
    ("llama-linear", {}, "llama", {"rope__scaling__type": None}),
    ("mistral", {}, "llama", {}),
    ("qwen2", {}, "qwen2", {}),
    (
        "qwen2",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
        "qwen2",
        {},
    ),
    ("qwen3", {}, "qwen3", {}),
    ("phi", {}, "phi2", {}),
    ("phi3", {}, "phi3", {}),
    ("phi3-longrope", {}, "phi3", {"rope__scaling__attn_factor": STRETCH}),
    ("phi3-partial", {}, "phi3", {}),
    ("smollm3", {}, "smollm3", {}),
    ("granite", {}, "granite", {}),
    ("arcee", {}, "arcee", {}),
    ("gemma", {}, "gemma", {}),
    ("gemma2", SCALAR, "gemma2", {}),
    ("gemma3_text", SCALAR, "gemma3", {}),
    ("gemma3_text", SCALAR, "gemma3", {"rope__freq_base_swa": None}),
    ("gemma3_text", {**SCALAR, "rope_parameters": {**LINEAR, **LOCAL}}, "gemma3", {}),
    ("gemma3_text", {**SCALAR, "layer_types": ["full_attention"] * 6}, "gemma3", {"attention__sliding_window": None}),
    ("olmo2", {}, "olmo2", {}),
    ("olmo3", {}, "olmo2", {}),
    ("llama", {"rope_scaling": LLAMA3, "rms_norm_eps": 1e-5}, "exaone", {}),
    ("exaone4", {}, "exaone4", {}),
    ("exaone4-full", {"layer_types": ["full_attention"] * 4}, "exaone4", {}),
    ("glm", HEAD, "chatglm", {}),
    ("glm4", {}, "glm4", {}),
    ("stablelm", {}, "stablelm", {}),
    ("stablelm-parallel", {"qk_layernorm": False}, "stablelm", {}),
    (
        "hunyuan_v1_dense",
        {},
        "hunyuan-dense",
        {"rope__freq_base": 1e4 * 1000 ** (20 / 18), "rope__scaling__factor": 1.0, "context_length": 1 << 18},
    ),
    ("ernie4_5", {}, "ernie4_5", {}),
    ("cohere2", {}, "cohere2", {}),
    ("seed_oss", {}, "seed_oss", {}),
    ("jais2", {}, "jais2", {}),
    ("nemotron", {}, "nemotron", {}),
    ("starcoder2", {}, "starcoder2", {}),
]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    transformers_logging.set_verbosity_error()
    yield
    transformers_logging.set_verbosity_warning()


def expected(model: nn.Module) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found = model(torch.tensor([TOKENS]))
    return np.asarray(getattr(found, "logits", found)[0])


def logits(source: DecoderSource) -> np.ndarray[Any, Any]:
    graph = trace(source.module(), len(TOKENS), len(TOKENS), "source")
    return Decoder([TorchRunner(graph, source.weights())], None).read(TOKENS)


def ratio(signal: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    return Noise().add(signal, found).sqnr


def test_every_architecture_is_tried() -> None:
    assert {architecture for _, _, architecture, _ in CASES} == set(MODEL_TYPES)


@pytest.mark.parametrize(
    ("name", "config", "architecture", "changes"), CASES, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_file_computes_what_its_model_does(
    tmp_path: Path, name: str, config: dict[str, Any], architecture: str, changes: dict[str, Any]
) -> None:
    model = make(name, **config)
    source = DecoderSource(write_model(tmp_path / "x.gguf", model, architecture, **changes))
    assert ratio(expected(model), logits(source)) > EXACT
    (tmp_path / "copy").mkdir()
    for file, content in source.description().items():
        (tmp_path / "copy" / file).write_bytes(content)
    assert DecoderSource(tmp_path / "copy").config() == source.config()


def test_queries_keys_and_values_in_one_tensor(tmp_path: Path) -> None:
    model = make("phi")
    source = DecoderSource(write_model(tmp_path / "x.gguf", model, "phi2", joined=True))
    assert ratio(expected(model), logits(source)) > EXACT


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "phi3", "stablelm", "starcoder2", "nemotron"])
def test_transformers_reads_the_same_of_a_file(tmp_path: Path, name: str) -> None:
    architecture = {"mistral": "llama"}.get(name, name)
    source = DecoderSource(write_model(tmp_path / "x.gguf", make(name), architecture))
    reference = source.reference()
    assert isinstance(reference, nn.Module)
    assert ratio(expected(reference), logits(source)) > EXACT


@pytest.mark.parametrize(
    ("name", "architecture", "why"),
    [
        ("llama-llama3", "llama", "does not read from a GGUF file what scales RoPE"),
        ("llama-biases", "llama", "reads another attention_bias from this GGUF file"),
        ("qwen3", "qwen3", "does not read this GGUF file: "),
        ("gemma2", "gemma2", "reads another "),
        ("arcee", "arcee", "does not read this GGUF file: GGUF model with architecture arcee is not supported yet."),
    ],
)
def test_transformers_is_no_reference_where_it_leaves_something_out(
    tmp_path: Path, name: str, architecture: str, why: str
) -> None:
    found = DecoderSource(write_model(tmp_path / "x.gguf", make(name), architecture)).reference()
    assert isinstance(found, str)
    assert found.startswith(f"transformers {why}")


@pytest.mark.parametrize(("layers", "width"), [(4, 20), (46, 12)])
def test_scores_of_the_largest_gemma_are_scaled_by_a_heads_share(tmp_path: Path, layers: int, width: int) -> None:
    file = write_model(tmp_path / "x.gguf", make("gemma2", num_hidden_layers=layers), "gemma2")
    assert json.loads(DecoderSource(file).description()["config.json"])["query_pre_attn_scalar"] == width
