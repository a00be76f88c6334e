"""The walk through a graph's parts on integers, floats at its ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llmconv import Bundle, BundleError
from llmconv.bundle import GraphSpec, PartSpec, TensorSpec
from llmconv.bundle.bundle import FORMAT
from llmconv.bundle.specs import dequantize, quantize
from llmconv.decoding import Arrays
from llmconv.encodings import Encoding
from llmconv.files import write_json
from llmconv.runtimes import PartsRunner
from llmconv.runtimes.runtime import rope_table

STEP = Encoding(8, 0.5, 128)


def spec(name: str, kind: str, encoding: Encoding | None, dtype: str, layer: int | None = None) -> TensorSpec:
    return TensorSpec(name, (1, 2), dtype, kind, layer, None, None, encoding)


IDS = spec("ids", "input_ids", None, "int32")
MASK = spec("mask", "attention_mask", STEP, "uint8")
HIDDEN = spec("hidden_state_1", "hidden", Encoding(16, 1.0, 0), "uint16")
KEY = spec("key", "new_key", STEP, "uint8", layer=0)
LOGITS = spec("logits", "logits", Encoding(16, 0.25, 4), "uint16")
GRAPH = GraphSpec(
    "g",
    2,
    4,
    (
        PartSpec("g_1_of_2", "onnx/g_1_of_2.onnx", (IDS, MASK), (HIDDEN, KEY)),
        PartSpec("g_2_of_2", "onnx/g_2_of_2.onnx", (HIDDEN, MASK), (LOGITS,)),
    ),
)


def test_quantize_rounds_half_to_even_and_clips() -> None:
    values = np.array([0.0, 0.25, 0.75, -0.25, 1000.0, -1000.0], dtype=np.float32)
    found = quantize(values, MASK)
    assert found.dtype == np.uint8
    assert found.tolist() == [128, 128, 130, 128, 255, 0]


def test_dequantize_by_hand() -> None:
    found = dequantize(np.array([0, 128, 255], dtype=np.uint8), MASK)
    assert found.dtype == np.float32
    assert found.tolist() == [-64.0, 0.0, 63.5]


@pytest.mark.parametrize("bits", [8, 16])
def test_hosts_and_graphs_quantize_alike(bits: int) -> None:
    encoding = Encoding.from_range(-1.3, 2.1, bits)
    tensor = spec("x", "hidden", encoding, encoding.dtype)
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    ints = quantize(values.numpy(), tensor)
    assert ints.astype(np.int32).tolist() == encoding.quantize(values).tolist()
    assert dequantize(ints, tensor).tolist() == encoding.fake_quantize(values).tolist()


def test_values_without_an_encoding_change_their_type_alone() -> None:
    assert quantize(np.array([3.0]), IDS).dtype == np.int32
    values = np.array([1.5], dtype=np.float32)
    assert dequantize(values, spec("x", "logits", None, "float32")) is values


def test_parts_run_in_turn_on_integers() -> None:
    seen: list[Arrays] = []

    def run_part(i: int, inputs: Arrays) -> Arrays:
        seen.append(inputs)
        if i == 0:
            return {
                "hidden_state_1": np.array([[7, 65535]], np.uint16),
                "key": np.array([[0, 255]], np.uint8),
            }
        return {"logits": np.array([[4, 8]], np.uint16)}

    runner = PartsRunner(GRAPH, run_part)
    found = runner.run({"ids": np.array([[1, 2]]), "mask": np.array([[0.0, -64.0]], np.float32)})
    assert [set(s) for s in seen] == [{"ids", "mask"}, {"hidden_state_1", "mask"}]
    assert seen[0]["mask"].tolist() == seen[1]["mask"].tolist() == [[128, 0]]
    assert seen[0]["ids"].dtype == np.int32
    assert seen[1]["hidden_state_1"].tolist() == [[7, 65535]]  # as the first part left it
    assert {name: value.tolist() for name, value in found.items()} == {
        "logits": [[0.0, 1.0]],
        "key": [[0, 255]],  # as it is cached
    }
    assert runner.outputs["key"].encoding == Encoding(8, 0.5, 128)
    assert runner.raw["hidden_state_1"].tolist() == [[7, 65535]]
    assert runner.raw["key"].dtype == np.uint8


def test_cached_integers_go_in_as_they_are() -> None:
    past = replace(KEY, kind="past_key", name="past")
    graph = GraphSpec("g", 1, 2, (PartSpec("g_1_of_1", "", (past,), (LOGITS,)),))
    seen: list[Arrays] = []

    def run_part(_i: int, inputs: Arrays) -> Arrays:
        seen.append(inputs)
        return {"logits": np.array([[4, 8]], np.uint16)}

    runner = PartsRunner(graph, run_part)
    integers = np.array([[0, 255]], np.uint8)
    runner.run({"past": integers})
    assert seen[0]["past"] is integers
    runner.run({"past": runner.inputs["past"].floats(integers)})  # as a runner beside it may have them
    assert (seen[1]["past"].dtype, seen[1]["past"].tolist()) == (np.uint8, [[0, 255]])


def test_host_sees_no_hidden_state() -> None:
    runner = PartsRunner(GRAPH, lambda _i, inputs: inputs)
    assert (runner.name, runner.ar, runner.context) == ("g", 2, 4)
    assert set(runner.inputs) == {"ids", "mask"}
    assert set(runner.outputs) == {"key", "logits"}
    assert (runner.outputs["key"].io.kind, runner.outputs["key"].io.layer) == ("new_key", 0)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_json(tmp_path / "manifest.json", {"format": FORMAT})
    return Bundle(tmp_path)


def test_rope_table_is_read_from_the_bundle(bundle: Bundle) -> None:
    cos = torch.arange(6.0).reshape(3, 2)
    save_file({"rope_cos": cos, "rope_sin": -cos}, bundle.folder / "rope.safetensors")
    found = rope_table(bundle)
    assert {kind: t.tolist() for kind, t in found.items()} == {"rope_cos": cos.tolist(), "rope_sin": (-cos).tolist()}


def test_bundle_without_a_rope_table(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"rope\.safetensors: missing"):
        rope_table(bundle)
