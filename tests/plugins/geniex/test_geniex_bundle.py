"""GenieX's files in a bundle: held against AI Hub Models' fields and types, and read as GenieX's loader reads them."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llmconv import Bundle, BundleError, Registry
from llmconv.cli.main import main
from llmconv.sources import Rope
from llmconv_plugins.genie.genie_config import CONFIG, rope_config
from llmconv_plugins.geniex.exporter import GenieX, check
from llmconv_plugins.geniex.metadata import METADATA, TOKENIZER_CONFIG

TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def table(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


TENSOR = table(
    {
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1},
        "dtype": {"enum": ["float16", "float32", "int32", "uint8", "uint16"]},
    },
    {
        "description": {"type": "string"},
        "quantization_parameters": table(
            {"scale": {"type": "number", "exclusiveMinimum": 0}, "zero_point": {"type": "integer"}}
        ),
    },
)
TENSORS = {"type": "object", "additionalProperties": TENSOR, "minProperties": 1}
# ModelMetadata of qai-hub-models 0.65.0, which refuses keys that it does not know: what language models have of it.
SCHEMA = table(
    {
        "runtime": {"enum": ["onnx", "precompiled_qnn_onnx", "qnn_context_binary", "genie", "geniex_qairt"]},
        "precision": {"type": "string", "pattern": r"^(float|w\d+a\d+)$"},
        "tool_versions": table({}, dict.fromkeys(("qairt", "geniex", "onnx", "onnx_runtime"), TEXT)),
        "model_files": {
            "type": "object",
            "additionalProperties": table({"inputs": TENSORS, "outputs": TENSORS}),
            "minProperties": 1,
        },
    },
    {
        "model_id": {"type": "string"},
        "model_name": {"type": "string"},
        "supplementary_files": TEXTS,
        "use_case": {"enum": ["Text Generation"]},
        "genie": table(
            {"chat_template": TEXTS, "context_lengths": {"type": "array", "items": {"type": "integer"}}},
            {f"supports_{what}": {"type": "boolean"} for what in ("streaming", "vision", "thinking")},
        ),
    },
)
GRAPH_NAME = re.compile(r"(?:[a-zA-Z]+_)?ar(\d+)_cl(\d+)_(\d+)_of_(\d+)")  # parseGraphName
SPECIAL = {"attention_mask", "position_ids", "position_ids_cos", "position_ids_sin"}  # isSpecialTensor, but for keys


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / METADATA).read_text()))


def faults(metadata: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(metadata)]


def as_geniex_reads(metadata: dict[str, Any]) -> dict[str, Any]:
    """The sizes that parseQAIRTMetadata finds, of the first graph of each part, keys in alphabetical order."""
    firsts: dict[int, dict[str, Any]] = {}
    lengths = set()
    for name in sorted(metadata["model_files"]):
        ar, context, part, _ = map(int, GRAPH_NAME.fullmatch(name).groups())  # type: ignore[union-attr]
        lengths.add((ar, context))
        firsts.setdefault(part, metadata["model_files"][name])
    layers: dict[int, list[int]] = {}
    for part, tensors in firsts.items():
        layers[part] = sorted(int(n.split("_")[2]) for n in tensors["inputs"] if n.startswith("past_key_"))
        assert layers[part] == list(range(layers[part][0], layers[part][-1] + 1))
    states = [n for n in sorted(firsts[1]["inputs"]) if n not in SPECIAL and not n.endswith("_in")]
    key = next(t["shape"] for n, t in sorted(firsts[1]["inputs"].items()) if n.startswith("past_key_"))
    logits = next(part["outputs"]["logits"] for part in firsts.values() if "logits" in part["outputs"])
    return {
        "parts": sorted(firsts),
        "lengths": sorted(lengths),
        "layers": max(map(max, layers.values())) + 1,
        "first": states[0],
        "kv_heads": key[0],
        "head_dim": key[2],
        "vocabulary": logits["shape"][-1],
    }


def test_metadata_has_the_fields_and_types(small_bundle: Bundle) -> None:
    metadata = read(small_bundle.folder)
    assert faults(metadata) == []
    assert (metadata["runtime"], metadata["precision"]) == ("geniex_qairt", "w4a16")
    assert metadata["model_id"] == "llama_v3_small"
    assert metadata["genie"]["context_lengths"] == [128]
    assert re.match(r"\d+\.\d+\.\d+", metadata["tool_versions"]["qairt"])
    assert {METADATA, *metadata["supplementary_files"]} <= set(small_bundle.manifest["files"])


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"runtime": "qnn"}, "is not one of"),
        ({"parts": 2}, "'parts' was unexpected"),
        ({"precision": 4}, "not of type"),
    ],
)
def test_the_schema_refuses_what_is_not_so(small_bundle: Bundle, broken: dict[str, Any], said: str) -> None:
    assert any(said in fault for fault in faults(read(small_bundle.folder) | broken))


def test_geniex_finds_the_sizes_of_the_model(small_bundle: Bundle) -> None:
    assert as_geniex_reads(read(small_bundle.folder)) == {
        "parts": [1, 2],
        "lengths": [(1, 128), (32, 128)],
        "layers": 3,
        "first": "input_ids",
        "kv_heads": 2,
        "head_dim": 8,
        "vocabulary": 2048,
    }


def test_tensors_are_the_manifests(small_bundle: Bundle) -> None:
    files = read(small_bundle.folder)["model_files"]
    parts = [part for graph in small_bundle.graphs.values() for part in graph.parts]
    assert list(files) == sorted(part.label for part in parts)
    for part in parts:
        for side, specs in (("inputs", part.inputs), ("outputs", part.outputs)):
            assert set(files[part.label][side]) == {spec.name for spec in specs}
            for spec in specs:
                found = files[part.label][side][spec.name]
                assert (tuple(found["shape"]), found["dtype"]) == (spec.shape, spec.dtype)
                encoding = spec.encoding and {"scale": spec.encoding.scale, "zero_point": spec.encoding.zero_point}
                assert found.get("quantization_parameters") == encoding


def test_a_bundle_of_onnx_files_describes_those(small_onnx: Bundle) -> None:
    metadata = read(small_onnx.folder)
    assert faults(metadata) == []
    assert (metadata["runtime"], "genie" in metadata) == ("onnx", False)
    assert all((small_onnx.folder / file).is_file() for file in metadata["model_files"])


def test_export_is_a_flat_folder_that_geniex_takes(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_bundle.folder, tmp_path / "b")
    monkeypatch.setattr(sys, "argv", ["llmconv", "export", str(tmp_path / "b"), "--to", "geniex"])
    with pytest.raises(SystemExit, match="0"):
        main()
    folder = tmp_path / "b" / "geniex"
    config = json.loads((folder / CONFIG).read_text())
    binaries = config["dialog"]["engine"]["model"]["binary"]["ctx-bins"]
    beside = {METADATA, CONFIG, "tokenizer.json", TOKENIZER_CONFIG, "htp_backend_ext_config.json"}
    assert {f.name for f in folder.iterdir()} == {*binaries, *beside}
    for name in binaries:
        assert (folder / name).samefile(tmp_path / "b" / "qnn" / name)
    given = json.loads(small_bundle.path(CONFIG).read_text())
    given["dialog"]["engine"]["model"]["binary"]["ctx-bins"] = binaries
    assert config == given
    told = json.loads((folder / TOKENIZER_CONFIG).read_text())  # of a base model: GenieX loads none without a template
    assert (told["bos_token"], "m.content" in told["chat_template"]) == ("<s>", True)


def test_export_for_genie_holds_what_is_pushed(small_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(small_bundle.folder, tmp_path / "b")
    registry = Registry.load()
    folder = registry.create("exporter", "genie", {}).export(Bundle(tmp_path / "b"), registry, lambda *_: None)
    named = {CONFIG, "htp_backend_ext_config.json", "tokenizer.json", "part_1_of_2.bin", "part_2_of_2.bin"}
    assert {f.name for f in folder.iterdir()} == named


def test_without_binaries_there_is_nothing_to_export(small_onnx: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no genie_config\.json \(it has no binaries; convert with backend qnn\)"):
        GenieX().export(small_onnx, Registry.of(), lambda *_: None)
    assert not (small_onnx.folder / "geniex").exists()


def test_a_prompt_graph_without_past_is_refused(small_published: Bundle) -> None:
    with pytest.raises(BundleError, match=r"takes none; set graphs\.prompt\.ar lower"):
        check(small_published)


def test_geniex_needs_both_lengths_in_each_context(small_bundle: Bundle) -> None:
    bundle = Bundle(small_bundle.folder)
    bundle.graphs["token64"] = replace(bundle.graphs["token"], name="token64", context=64)
    with pytest.raises(BundleError, match="context 64 has none with ar = 32; convert with the same contexts"):
        check(bundle)
    bundle.graphs["prompt64"] = replace(bundle.graphs["prompt"], name="prompt64", context=64)
    check(bundle)


def geniex_factor(scaling: dict[str, Any]) -> float:
    """LongRoPEEmbedding's factor of cos and sin."""
    ratio, original = 131072 / scaling["original-max-position-embeddings"], scaling["original-max-position-embeddings"]
    return 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))


@pytest.mark.parametrize("factor", [1.0, 1.1386, 1.1902])
def test_geniex_computes_a_stretched_rope_as_the_model_does(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    plain = Rope.plain(500.0, 8).frequencies
    rope = Rope(500.0, tuple(f / (1 + i) for i, f in enumerate(plain)), factor)
    assert geniex_factor(rope_config(rope)["rope-scaling"]) == pytest.approx(factor, abs=1e-4)
    monkeypatch.setitem(small_bundle.__dict__, "config", replace(small_bundle.config, ropes=(rope,)))
    check(small_bundle)


@pytest.mark.parametrize(
    ("ropes", "said"),
    [
        ((Rope.plain(1e4, 8), Rope.plain(500.0, 8)), "fills one rotary table, and the model has 2"),
        ((Rope.plain(1e4, 4),), "turns whole heads, and the model 4 of 8 channels"),
        ((Rope(1e4, (1.0, 0.1, 0.01, 0.002), 5.0),), "cannot multiply cos and sin by 5"),
    ],
)
def test_what_geniex_would_compute_otherwise_is_refused(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, ropes: tuple[Rope, ...], said: str
) -> None:
    monkeypatch.setitem(small_bundle.__dict__, "config", replace(small_bundle.config, ropes=ropes))
    with pytest.raises(BundleError, match=said):
        check(small_bundle)
